"""The server put together, from a bundle to the last answer after SIGTERM."""

import asyncio
import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from irv2.client.channel import SERVICE
from irv2.errors import Irv2Error
from irv2.inference import open_inference_pb2_grpc
from irv2.serve.access.address import Address
from irv2.serve.access.connection_limits import channel_options
from irv2.serve.access.tls import Tls
from irv2.serve.access.tokens import Tokens
from irv2.serve.operations.metrics import Metrics
from irv2.serve.options import ServeOptions
from irv2.serve.pipeline.model import Opened, ServedModel, open_model, start_model
from irv2.serve.process import keep_few_arenas, tidy_up
from irv2.serve.reload import Reloader
from irv2.serve.rpc.calls import Answering
from irv2.serve.rpc.classifier import Classifier
from irv2.serve.rpc.early_refusal import Reading
from irv2.serve.rpc.open_inference import SERVICE as OPEN_INFERENCE
from irv2.serve.rpc.open_inference import OpenInference
from irv2.serve.rpc.request_log import Follower
from irv2.serve.scheduling import wait_for_a_turn
from irv2.v1 import classifier_pb2_grpc

if TYPE_CHECKING:
    from irv2.serve.operations.http import HttpServer

logger = logging.getLogger(__name__)

LAST_ANSWER_S = 0.5  # its way to the client, beyond its deadline


def serve(bundle_path: Path, options: ServeOptions, on_ready: "Callable[[Server], None]") -> int:
    """Serve until a signal; returns the exit status: 0 after SIGTERM, 130 after Ctrl-C.

    `on_ready` is called once requests are answered.
    """
    keep_few_arenas()
    wait_for_a_turn()
    stopped_by = asyncio.run(_serve(bundle_path, options, on_ready))
    return 130 if stopped_by == signal.SIGINT else 0


async def _serve(
    bundle_path: Path, options: ServeOptions, on_ready: "Callable[[Server], None]"
) -> signal.Signals:
    loop = asyncio.get_running_loop()
    reloader = Reloader(bundle_path, lambda: server.reload(bundle_path))
    loop.add_signal_handler(signal.SIGHUP, reloader.want)  # first: it would end the process
    # Nothing else may hold the opened model: it is to go when another takes over.
    server = Server(open_model(bundle_path, options), options)
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, signals.put_nowait, each)
    background = []
    try:
        await server.start()
        is_wanted = signals.empty()  # else nobody was told of it, and nobody has to notice
        if is_wanted:
            on_ready(server)
            background.append(asyncio.create_task(reloader.run()))
            if options.watch:
                background.append(asyncio.create_task(reloader.watch()))
        stopped_by = await signals.get()
        await server.announce_stop()
        if is_wanted and stopped_by == signal.SIGTERM:
            logger.info("stopping grace_s=%g", options.grace_s)
            await _wait_for_signal(signals, options.grace_s)  # a second one ends the grace
    finally:
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await server.stop()
    return stopped_by


async def _wait_for_signal(signals: "asyncio.Queue[signal.Signals]", timeout_s: float) -> None:
    waiting = asyncio.create_task(signals.get())
    await asyncio.wait({waiting}, timeout=timeout_s)
    waiting.cancel()


class Server:
    """The ports of one process and what answers on them. Belongs to one event loop."""

    def __init__(self, opened: Opened, options: ServeOptions) -> None:
        self._options = options
        self._metrics = Metrics()
        self._served = ServedModel(opened, options, self._metrics, self._tell_health)
        self._closing: set[asyncio.Task[None]] = set()  # models that another one has followed
        self._wants_requests = False
        self._metrics.watch(
            lambda: self._served.batcher.num_admitted,
            lambda: self._served.batcher.predicted_wait_s(),
            lambda: self.is_ready,
        )
        self._tls = Tls(options.tls) if options.tls else None
        self._health = health.aio.HealthServicer()
        self._stopping = asyncio.Event()
        self._follower = Follower(log=options.log_requests)
        self._answering = Answering(self._metrics, options.default_deadline_ms / 1e3)
        self._grpc = self._grpc_server()
        self._http: HttpServer | None = None
        self._listen, self._http_listen = options.listen, options.http

    async def start(self) -> None:
        """Open the ports, warm up, be ready. Raises Irv2Error where a port can't be had."""
        await self._tell_health()
        self._bind()
        if self._http_listen:
            await self._start_http(self._http_listen)
        await self._grpc.start()
        await self._served.start()
        tidy_up()
        self._metrics.serving(self._served.model, self._served.artifact.file)
        self._wants_requests = True
        await self._tell_health()

    async def reload(self, bundle_path: Path) -> None:
        """Serve what lies there now. Where that fails, one log line, and all stays as it is."""
        try:
            new = await self._started(bundle_path)
        except Exception as error:  # whatever is wrong with it, requests go on being answered
            foreseen = isinstance(error, Irv2Error)
            logger.error("reload_failed error=%s", error, exc_info=not foreseen)
            self._metrics.observe_reload("failed")
            return
        # A request is admitted in the same step of the loop in which it takes its model, so the
        # old one knows all of its requests, and closes when they are answered.
        old, self._served = self._served, new
        closing = asyncio.create_task(self._close(old))  # its engine may never return
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        self._metrics.serving(new.model, new.artifact.file)
        self._metrics.observe_reload("ok")
        await self._tell_health()
        logger.info("reloaded %s", self._what_is_served)

    async def announce_stop(self) -> None:
        """Tell load balancers to go elsewhere; requests are still answered."""
        self._wants_requests = False
        await self._tell_health()

    async def stop(self) -> None:
        """Take no new request, answer the open ones, close everything.

        Calls without an end (who watches health) are cut off after the last answer.
        """
        self._stopping.set()
        last_answer_s = self._answering.time_to_answer_s() + LAST_ANSWER_S
        await self._grpc.stop(min(last_answer_s, self._options.stop_timeout_s))
        await self._served.close()
        await asyncio.gather(*self._closing)
        if self._http:
            await self._http.stop()
        await self._follower.close()

    @property
    def is_ready(self) -> bool:
        """Whether new requests are wanted: warm, with an engine that answers, no stop announced."""
        return self._wants_requests and self._served.is_healthy

    @property
    def description(self) -> dict[str, object]:
        """Where the server listens and what it serves."""
        model = self._served.model
        return {
            "listen": str(self._listen),
            "http": str(self._http_listen) if self._http_listen else None,
            "model_id": model.id,
            "artifact": self._served.artifact.file,
            "selftest": self._served.self_test,
            "precision": model.precision,
            "backend": model.backend,
            "max_batch": model.max_batch,
        }

    @property
    def ready_line(self) -> str:
        """`ready HOST:PORT` and what answers there."""
        http = f" http={self._http_listen}" if self._http_listen else ""
        return f"ready {self._listen} {self._what_is_served}{http}"

    @property
    def _what_is_served(self) -> str:
        model = self._served.model
        return (
            f"model={model.id[:12]} precision={model.precision} backend={model.backend} "
            f"artifact={self._served.artifact.file} selftest={self._served.self_test} "
            f"max_batch={model.max_batch}"
        )

    async def _started(self, bundle_path: Path) -> ServedModel:
        """A second model beside the one that serves, ready to take over."""
        opened = await asyncio.to_thread(open_model, bundle_path, self._options)
        return await start_model(opened, self._options, self._metrics, self._tell_health)

    async def _close(self, old: ServedModel) -> None:
        try:
            await old.close()
            logger.info("closed model=%s", old.model.id[:12])
        except Exception:  # whatever an engine's library raises; the new one serves
            logger.exception("close_failed model=%s", old.model.id[:12])
        del old
        await asyncio.to_thread(tidy_up)

    def _grpc_server(self) -> grpc.aio.Server:
        options, tokens = self._options, self._options.token_file
        guards = [Tokens(tokens, self._metrics.observe_call)] if tokens else []
        model_and_records = (lambda: self._served, self._answering, self._follower)
        server = grpc.aio.server(
            interceptors=[*guards, Reading(*model_and_records)],
            options=channel_options(options.max_message_bytes, options.connections),
        )
        classifier = Classifier(
            *model_and_records, self._stopping, max_stream_images=options.max_queue // 4
        )
        classifier_pb2_grpc.add_ClassifierServicer_to_server(classifier, server)
        open_inference = OpenInference(*model_and_records, lambda: self.is_ready)
        open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(open_inference, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (SERVICE, OPEN_INFERENCE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        return server

    def _bind(self) -> None:
        address = str(self._listen)
        try:
            if self._tls:
                port = self._grpc.add_secure_port(address, self._tls.grpc_credentials())
            else:
                port = self._grpc.add_insecure_port(address)
        except RuntimeError as error:
            raise self._listen.why_not() from error
        self._listen = Address(self._listen.host, port)

    async def _start_http(self, address: Address) -> None:
        from irv2.serve.operations.http import HttpServer  # brings a library for this port alone

        tls = self._tls.http_context() if self._tls else None
        self._http = HttpServer(self._metrics.text, lambda: self.is_ready, tls)
        try:
            port = await self._http.start(address.host, address.port)
        except OSError as error:
            raise address.why_not() from error
        self._http_listen = Address(address.host, port)

    async def _tell_health(self) -> None:
        answer = health_pb2.HealthCheckResponse
        for service in ("", SERVICE):
            await self._health.set(service, answer.SERVING if self.is_ready else answer.NOT_SERVING)
