"""The gRPC port: its services, who may ask, and the end of their calls."""

import asyncio
from collections.abc import Callable, Iterable

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from irv2.errors import Irv2Error
from irv2.inference import open_inference_pb2_grpc
from irv2.protocol import SERVICE
from irv2.serve.access.address import Address, UnixSocket
from irv2.serve.access.connection_limits import channel_options
from irv2.serve.access.tls import Tls
from irv2.serve.access.tokens import TokenFile, Tokens
from irv2.serve.operations.metrics import Metrics
from irv2.serve.options import ServeOptions
from irv2.serve.pipeline.model import Model
from irv2.serve.rpc.calls import Calls
from irv2.serve.rpc.classifier import Classifier
from irv2.serve.rpc.early_refusal import EarlyRefusal
from irv2.serve.rpc.open_inference import SERVICE as OPEN_INFERENCE
from irv2.serve.rpc.open_inference import OpenInference
from irv2.serve.rpc.reflection import add_reflection
from irv2.serve.rpc.request_log import RequestLog
from irv2.v1 import classifier_pb2_grpc

LAST_ANSWER_S = 0.5  # for the way of the last answer to its client, beyond its deadline


class GrpcPort:
    """Answers calls with one model after the other. Belongs to one event loop."""

    def __init__(
        self,
        options: ServeOptions,
        metrics: Metrics,
        model: Model,
        tls: Tls | None,
    ) -> None:
        """Raises UsageError where a file or a variable of the environment is wrong."""
        self._options, self.model, self._tls = options, model, tls
        self.tokens = TokenFile(options.token_file) if options.token_file else None
        self._health = health.aio.HealthServicer()
        self._is_ready = False
        self._stopping = asyncio.Event()
        self._log = RequestLog(log=options.log_requests)
        self.calls = Calls(metrics, self._log, options.default_deadline_ms / 1e3)
        self._grpc = self._server(metrics, lambda: self.model)
        self._watching: asyncio.Task[None] | None = None

    def bind(self, names: Iterable[str], listen: Address | UnixSocket) -> int:
        """Take gRPC's `names` of the address `listen`; return the port. Raises Irv2Error."""
        for name in names:
            try:
                if self._tls:
                    port = self._grpc.add_secure_port(name, self._tls.grpc_credentials())
                else:
                    port = self._grpc.add_insecure_port(name)
            except RuntimeError as error:
                got = f"gRPC can't listen there ({error})"
                raise Irv2Error(listen, got, way_out="pass another --listen") from error
        return int(port)

    async def start(self) -> None:
        """Answer calls."""
        await self._grpc.start()
        if self.tokens:
            self._watching = asyncio.create_task(self.tokens.watch())

    async def use(self, model: Model) -> None:
        """Answer requests with this model from now on.

        A request is admitted in the step of the event loop in which it takes its model. So the one
        before knows all of its requests, and may be closed at once.
        """
        self.model = model

    async def tell_health(self, *, is_ready: bool) -> None:
        """Tell clients and load balancers whether new requests are wanted."""
        self._is_ready = is_ready
        answer = health_pb2.HealthCheckResponse
        for service in ("", SERVICE, OPEN_INFERENCE):
            await self._health.set(service, answer.SERVING if is_ready else answer.NOT_SERVING)

    async def stop(self) -> None:
        """Refuse new requests and answer the open ones.

        Calls that never end (those that watch health) are cut off after the last answer.
        """
        self._stopping.set()
        last_answer_s = self.calls.time_to_answer_s() + LAST_ANSWER_S
        await self._grpc.stop(min(last_answer_s, self._options.stop_timeout_s))

    async def close(self) -> None:
        """Send the last traces, once all calls have ended."""
        if self._watching:
            self._watching.cancel()
        await self._log.close()

    def _server(self, metrics: Metrics, current_model: Callable[[], Model]) -> grpc.aio.Server:
        options = self._options
        guards = [Tokens(self.tokens, metrics.observe_call)] if self.tokens else []
        server = grpc.aio.server(
            interceptors=[*guards, EarlyRefusal(current_model, self.calls)],
            options=channel_options(
                options.max_message_bytes,
                options.connections,
                share_port=options.num_front_ends > 1,
            ),
        )
        classifier = Classifier(
            current_model,
            self.calls,
            self._stopping,
            max_stream_images=options.max_queue // 4,
        )
        classifier_pb2_grpc.add_ClassifierServicer_to_server(classifier, server)
        open_inference = OpenInference(current_model, self.calls, lambda: self._is_ready)
        open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(open_inference, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        add_reflection((SERVICE, OPEN_INFERENCE, health.SERVICE_NAME), server)
        return server
