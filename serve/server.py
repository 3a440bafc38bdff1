"""The whole server, from opening a bundle to the last answer after SIGTERM."""

import asyncio
import logging
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from irv2.errors import Irv2Error
from irv2.inference import open_inference_pb2_grpc
from irv2.protocol import SERVICE
from irv2.serve.access.address import Address
from irv2.serve.access.connection_limits import channel_options
from irv2.serve.access.tls import Tls
from irv2.serve.access.tokens import TokenFile, Tokens
from irv2.serve.operations.logs import num_lines_lost
from irv2.serve.operations.metrics import Metrics
from irv2.serve.options import ServeOptions
from irv2.serve.pipeline.model import OpenedModel, ServedModel, open_model, start_model
from irv2.serve.process import keep_few_arenas, return_memory, tidy_up, wait_for_a_turn
from irv2.serve.reload import Reloader
from irv2.serve.rpc.calls import Calls
from irv2.serve.rpc.classifier import Classifier
from irv2.serve.rpc.early_refusal import EarlyRefusal
from irv2.serve.rpc.open_inference import SERVICE as OPEN_INFERENCE
from irv2.serve.rpc.open_inference import OpenInference
from irv2.serve.rpc.reflection import add_reflection
from irv2.serve.rpc.request_log import RequestLog
from irv2.v1 import classifier_pb2_grpc

if TYPE_CHECKING:
    from irv2.serve.operations.http import HttpServer

logger = logging.getLogger(__name__)

LAST_ANSWER_S = 0.5  # for the way of the last answer to its client, beyond its deadline


def serve(bundle_path: Path, options: ServeOptions, on_ready: "Callable[[Server], None]") -> int:
    """Serve until a signal and return the exit status: 0 after SIGTERM, 130 after Ctrl-C.

    `on_ready` is called once the server answers requests.
    """
    keep_few_arenas()
    wait_for_a_turn()
    stopped_by = asyncio.run(serve_until_signal(bundle_path, options, on_ready))
    return 130 if stopped_by == signal.SIGINT else 0


async def serve_until_signal(
    bundle_path: Path,
    options: ServeOptions,
    on_ready: "Callable[[Server], None]",
    build: "type[Server] | None" = None,
) -> signal.Signals:
    """Serve until SIGTERM or Ctrl-C and return which; `build` makes the server."""
    loop = asyncio.get_running_loop()
    reloader = Reloader(bundle_path, lambda: server.reload(bundle_path))
    loop.add_signal_handler(
        signal.SIGHUP, reloader.want
    )  # first, since SIGHUP would end the process
    # Nothing else may refer to the opened model, so that it is freed when another takes over.
    server = (build or Server)(open_model(bundle_path, options), options)
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, signals.put_nowait, each)
    background = []
    try:
        await server.start()
        was_announced = signals.empty()  # else no load balancer knows of it and needs a grace
        if was_announced:
            on_ready(server)
            background.append(asyncio.create_task(reloader.run()))
            if options.watch:
                background.append(asyncio.create_task(reloader.watch()))
        stopped_by = await signals.get()
        await server.announce_stop()
        if was_announced and stopped_by == signal.SIGTERM:
            logger.info("stopping grace_s=%g", options.grace_s)
            with suppress(TimeoutError):  # a second signal ends the grace
                await asyncio.wait_for(signals.get(), options.grace_s)
    finally:
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await server.stop()
    return stopped_by


class Server:
    """The ports of one process and the services behind them. Belongs to one event loop."""

    def __init__(self, opened: OpenedModel, options: ServeOptions) -> None:
        self._options = options
        self._metrics = Metrics()
        self._model = ServedModel(opened, options, self._metrics, self._tell_health)
        self._closing: set[asyncio.Task[None]] = set()  # of models that were replaced
        self._wants_requests = False
        self._metrics.watch(
            lambda: self._model.admission.num_admitted,
            lambda: self._model.admission.predicted_wait_s(),
            lambda: self.is_ready,
            num_lines_lost,
        )
        self._tls = Tls(options.tls) if options.tls else None
        self._tokens = TokenFile(options.token_file) if options.token_file else None
        self._background: list[asyncio.Task[None]] = []
        self._health = health.aio.HealthServicer()
        self._stopping = asyncio.Event()
        self._log = RequestLog(log=options.log_requests)
        self._calls = Calls(self._metrics, self._log, options.default_deadline_ms / 1e3)
        self._grpc = self._grpc_server()
        self._http: HttpServer | None = None
        self._listen, self._http_listen = options.listen, options.http

    async def start(self) -> None:
        """Open the ports, warm up, be ready. Raises Irv2Error where a port can't be opened."""
        await self._tell_health()
        self._bind()
        if self._http_listen:
            await self._start_http(self._http_listen)
        await self._grpc.start()
        self._background.append(asyncio.create_task(return_memory()))
        if self._tokens:
            self._background.append(asyncio.create_task(self._tokens.watch()))
        await self._model.start()
        tidy_up()
        self._metrics.serving(self._model.description, self._model.artifact.file)
        self._wants_requests = True
        await self._tell_health()

    async def reload(self, bundle_path: Path) -> None:
        """Serve the bundle that lies there now; where that fails, log it and go on as before."""
        try:
            new = await self._started(bundle_path)
        except Exception as error:  # whatever is wrong with it, requests must be answered
            foreseen = isinstance(error, Irv2Error)
            logger.error("reload_failed error=%s", error, exc_info=not foreseen)
            self._metrics.observe_reload("failed")
            return
        # A request is admitted in the step of the event loop in which it takes its model, so the
        # old model knows all of its requests, and closes once they are answered.
        old, self._model = self._model, new
        closing = asyncio.create_task(self._close(old))  # not awaited: its engine may never return
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        self._metrics.serving(new.description, new.artifact.file)
        self._metrics.observe_reload("ok")
        await self._tell_health()
        logger.info("reloaded %s", self._what_is_served)

    async def announce_stop(self) -> None:
        """Tell load balancers to send requests elsewhere; those that come are still answered."""
        self._wants_requests = False
        await self._tell_health()

    async def stop(self) -> None:
        """Refuse new requests, answer the open ones, close everything.

        Calls that never end (those that watch health) are cut off after the last answer.
        """
        self._stopping.set()
        last_answer_s = self._calls.time_to_answer_s() + LAST_ANSWER_S
        await self._grpc.stop(min(last_answer_s, self._options.stop_timeout_s))
        await self._model.close()
        await asyncio.gather(*self._closing)
        for task in self._background:
            task.cancel()
        if self._http:
            await self._http.stop()
        await self._log.close()

    def metrics_text(self) -> bytes:
        """The metrics as Prometheus scrapes them."""
        return self._metrics.text()

    @property
    def is_ready(self) -> bool:
        """Whether it wants new requests: it is warm, its engine answers, no stop was announced."""
        return self._wants_requests and self._model.is_healthy

    @property
    def description(self) -> dict[str, object]:
        """Where the server listens and what it serves."""
        model = self._model.description
        return {
            "listen": str(self._listen),
            "http": str(self._http_listen) if self._http_listen else None,
            "model_id": model.id,
            "artifact": self._model.artifact.file,
            "selftest": self._model.self_test,
            "precision": model.precision,
            "backend": model.backend,
            "max_batch": model.max_batch,
            "threads": self._model.num_threads,
            "workers": self._model.num_workers,
        }

    @property
    def ready_line(self) -> str:
        """`ready HOST:PORT` and what is served there."""
        http = f" http={self._http_listen}" if self._http_listen else ""
        return f"ready {self._listen} {self._what_is_served}{http}"

    @property
    def _what_is_served(self) -> str:
        model = self._model.description
        return (
            f"model={model.id[:12]} precision={model.precision} backend={model.backend} "
            f"artifact={self._model.artifact.file} selftest={self._model.self_test} "
            f"max_batch={model.max_batch} threads={self._model.num_threads} "
            f"workers={self._model.num_workers}"
        )

    async def _started(self, bundle_path: Path) -> ServedModel:
        """Start a second model beside the one that serves, ready to take over."""
        opened = await asyncio.to_thread(open_model, bundle_path, self._options)
        return await start_model(opened, self._options, self._metrics, self._tell_health)

    async def _close(self, old: ServedModel) -> None:
        try:
            await old.close()
            logger.info("closed model=%s", old.description.id[:12])
        except Exception:  # an engine's library may raise anything; the new model serves
            logger.exception("close_failed model=%s", old.description.id[:12])
        del old  # so that the next line can free its memory
        await asyncio.to_thread(tidy_up)

    def _grpc_server(self) -> grpc.aio.Server:
        options = self._options
        guards = [Tokens(self._tokens, self._metrics.observe_call)] if self._tokens else []
        model_and_calls = (lambda: self._model, self._calls)
        server = grpc.aio.server(
            interceptors=[*guards, EarlyRefusal(*model_and_calls)],
            options=channel_options(options.max_message_bytes, options.connections),
        )
        classifier = Classifier(
            *model_and_calls, self._stopping, max_stream_images=options.max_queue // 4
        )
        classifier_pb2_grpc.add_ClassifierServicer_to_server(classifier, server)
        open_inference = OpenInference(*model_and_calls, lambda: self.is_ready)
        open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(open_inference, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        add_reflection((SERVICE, OPEN_INFERENCE, health.SERVICE_NAME), server)
        return server

    def _bind(self) -> None:
        with self._listen.ready_for_grpc() as names:
            for name in names:
                try:
                    if self._tls:
                        port = self._grpc.add_secure_port(name, self._tls.grpc_credentials())
                    else:
                        port = self._grpc.add_insecure_port(name)
                except RuntimeError as error:
                    raise Irv2Error(self._listen, f"gRPC can't listen there ({error})") from error
        self._listen = self._listen.on_port(port)

    async def _start_http(self, address: Address) -> None:
        from irv2.serve.operations.http import HttpServer  # brings a library for this port alone

        tls = self._tls.http_context() if self._tls else None
        self._http = HttpServer(self._metrics.exposition, lambda: self.is_ready, tls)
        self._http_listen = address.on_port(await self._http.start(address.host, address.port))

    async def _tell_health(self) -> None:
        answer = health_pb2.HealthCheckResponse
        for service in ("", SERVICE, OPEN_INFERENCE):
            await self._health.set(service, answer.SERVING if self.is_ready else answer.NOT_SERVING)
