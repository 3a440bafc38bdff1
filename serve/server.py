"""The whole server, from opening a bundle to the last answer after SIGTERM."""

import asyncio
import logging
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from irv2.errors import BundleError, Irv2Error, UsageError
from irv2.serve.access.address import Address, UnixSocket
from irv2.serve.access.tls import Tls
from irv2.serve.front_ends.choose import with_front_ends
from irv2.serve.front_ends.counter_folder import CounterFolder
from irv2.serve.front_ends.own_front_end import OwnFrontEnd
from irv2.serve.front_ends.shared_model import SharedModel
from irv2.serve.front_ends.supervisor import FrontEnds
from irv2.serve.operations.logs import num_lines_lost
from irv2.serve.operations.metrics import Metrics, share_metrics
from irv2.serve.options import ServeOptions
from irv2.serve.pipeline.engine import OpenedModel, open_model
from irv2.serve.pipeline.model import ServedModel, start_model
from irv2.serve.pipeline.shadow import Shadow, open_shadow
from irv2.serve.process import keep_few_arenas, return_memory, tidy_up, wait_for_a_turn
from irv2.serve.reload import Reloader
from irv2.serve.rpc.port import GrpcPort

if TYPE_CHECKING:
    from irv2.serve.operations.http import HttpServer

logger = logging.getLogger(__name__)


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
    loop.add_signal_handler(signal.SIGHUP, reloader.want)  # first: SIGHUP would end the process
    # Nothing else may refer to the opened model, so that it is freed when another takes over.
    opened = open_model(bundle_path, options)
    server = (build or Server)(opened, with_front_ends(options, opened.choice.evidence))
    del opened
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


class Port(Protocol):
    """The gRPC port, of this process or of several front ends."""

    def bind(self, names: list[str], listen: Address | UnixSocket) -> int:
        """Take gRPC's `names` of the address `listen`; return the port. Raises Irv2Error."""

    async def start(self) -> None:
        """Answer calls, refusing requests so far. Raises Irv2Error."""

    async def use(self, model: Any) -> None:  # noqa: ANN401 (of the kind that it was made with)
        """Answer requests with this model from now on; the one before may be closed then."""

    async def tell_health(self, *, is_ready: bool) -> None:
        """Tell clients and load balancers whether new requests are wanted."""

    async def stop(self) -> None:
        """Refuse new requests and answer the open ones."""

    async def close(self) -> None:
        """Free what is left, once all calls have ended."""


class Server:
    """The ports and what answers behind them. Belongs to one event loop.

    With several front ends the gRPC port is theirs, and this process runs the engine.
    """

    def __init__(self, opened: OpenedModel, options: ServeOptions) -> None:
        self._options = options
        self._counters: CounterFolder | None = None
        self._tls = Tls(options.tls) if options.tls else None
        self._build: type[ServedModel | SharedModel]
        self._model: ServedModel | SharedModel
        self._port: Port
        if options.num_front_ends > 1:
            self._counters = CounterFolder()
            folder = str(self._counters.path)
            share_metrics(folder, "engine")
            self._metrics, self._build = Metrics(folder), SharedModel
            self._model = shared = SharedModel(opened, options, self._metrics, self._tell_health)
            own = OwnFrontEnd(options, self._metrics) if options.http else None
            self._port = front_ends = FrontEnds(options, shared, folder, own)
            self._answering: GrpcPort | OwnFrontEnd | None = own
            self._metrics.watch_processes(lambda: front_ends.pids)
        else:
            self._metrics, self._build = Metrics(), ServedModel
            self._model = local = ServedModel(opened, options, self._metrics, self._tell_health)
            self._port = self._answering = GrpcPort(options, self._metrics, local, self._tls)
        self._metrics.watch(
            lambda: self._model.admission.num_admitted,
            lambda: self._model.admission.predicted_wait_s(),
            lambda: self._model.engine.batcher.num_running,
            lambda: self.is_ready,
            num_lines_lost,
        )
        self._closing: set[asyncio.Task[None]] = set()  # of models that were replaced
        self._changing = asyncio.Lock()  # held while another model takes over
        self._shadow: Shadow | None = None
        self._shadowing: asyncio.Task[None] | None = None
        self._wants_requests = False
        self._background: list[asyncio.Task[None]] = []
        self._http: HttpServer | None = None
        self._listen, self._http_listen = options.listen, options.http

    async def start(self) -> None:
        """Open the ports, warm up, be ready. Raises Irv2Error where a port can't be opened."""
        await self._tell_health()
        with self._listen.ready_for_grpc() as names:
            self._listen = self._listen.on_port(self._port.bind(names, self._listen))
        await self._port.start()
        if self._http_listen and self._answering:
            await self._start_http(self._http_listen, self._answering)
        self._background.append(asyncio.create_task(return_memory()))
        await self._model.start()
        await self._port.use(self._model)
        if self._options.shadow:
            await self._start_shadow()
        tidy_up()
        self._metrics.serving(self._model.description, self._model.artifact_file)
        self._wants_requests = True
        await self._tell_health()

    async def reload(self, bundle_path: Path) -> None:
        """Serve the bundle that lies there now; where that fails, log it and go on as before."""
        async with self._changing:
            await self._change_to(bundle_path, self._options)

    async def announce_stop(self) -> None:
        """Tell load balancers to send requests elsewhere; those that come are still answered."""
        self._wants_requests = False
        await self._tell_health()

    async def stop(self) -> None:
        """Refuse new requests, answer the open ones, close everything."""
        if self._shadowing:  # it is promoted no more
            self._shadowing.cancel()
        await self._port.stop()
        await self._model.close()
        await asyncio.gather(*self._closing)
        for task in self._background:
            task.cancel()
        if self._http:
            await self._http.stop()
        await self._port.close()
        if self._shadowing:  # last, since its engine may never return
            await asyncio.gather(self._shadowing, return_exceptions=True)
        if self._counters:
            self._counters.remove()

    def metrics_text(self) -> bytes:
        """The metrics as Prometheus scrapes them."""
        return self._metrics.text()

    @property
    def is_ready(self) -> bool:
        """Whether it wants new requests: it is warm, its engine answers, no stop was announced."""
        return self._wants_requests and self._model.engine.is_healthy

    @property
    def description(self) -> dict[str, object]:
        """Where the server listens and what it serves."""
        model, engine = self._model.description, self._model.engine
        return {
            "listen": str(self._listen),
            "http": str(self._http_listen) if self._http_listen else None,
            "model_id": model.id,
            "artifact": self._model.artifact_file,
            "selftest": engine.self_test,
            "precision": model.precision,
            "backend": model.backend,
            "max_batch": model.max_batch,
            "threads": engine.num_threads,
            "workers": self._model.num_workers,
            "front_ends": self._options.num_front_ends,
            "streams": engine.batcher.num_streams,
            "choice": engine.how_chosen,
            "shadow": self._shadow.description.id if self._shadow else None,
        }

    @property
    def ready_line(self) -> str:
        """`ready HOST:PORT` and what is served there."""
        shadow = f" shadow={self._shadow.description.id[:12]}" if self._shadow else ""
        http = f" http={self._http_listen}" if self._http_listen else ""
        return f"ready {self._listen} {self._what_is_served}{shadow}{http}"

    @property
    def _what_is_served(self) -> str:
        model, engine, num = (
            self._model.description,
            self._model.engine,
            self._options.num_front_ends,
        )
        front_ends = f"front_ends={num} " if num > 1 else ""
        return (
            f"model={model.id[:12]} precision={model.precision} backend={model.backend} "
            f"artifact={self._model.artifact_file} selftest={engine.self_test} "
            f"max_batch={model.max_batch} streams={engine.batcher.num_streams} "
            f"threads={engine.num_threads} workers={self._model.num_workers} "
            f"{front_ends}"
            f"chosen={engine.how_chosen.replace(' ', ':', 1).replace(' ', '')}"
        )

    async def _change_to(
        self, bundle_path: Path, options: ServeOptions, wanted_id: str = ""
    ) -> bool:
        """Serve this bundle, or log what is wrong with it; whether it serves."""
        try:
            new = await self._taking_over(bundle_path, options, wanted_id)
        except Exception as error:  # whatever is wrong with it, requests must be answered
            foreseen = isinstance(error, Irv2Error)
            logger.error("reload_failed error=%s", error, exc_info=not foreseen)
            self._metrics.observe_reload("failed")
            return False
        old, self._model = self._model, new
        closing = asyncio.create_task(self._close(old))  # not awaited: its engine may never return
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        self._metrics.serving(new.description, new.artifact_file)
        self._metrics.observe_reload("ok")
        self._follow_with_shadow()
        await self._tell_health()
        logger.info("reloaded %s", self._what_is_served)
        return True

    async def _taking_over(
        self, bundle_path: Path, options: ServeOptions, wanted_id: str
    ) -> ServedModel | SharedModel:
        """Start a second model beside the one that serves, and let it take the requests."""
        opened = await asyncio.to_thread(open_model, bundle_path, options)
        if wanted_id not in ("", opened.bundle.id):
            await asyncio.to_thread(opened.choice.runner.close)
            got = f"is another bundle by now, {opened.bundle.id[:12]}"
            raise BundleError(bundle_path, got, f"{wanted_id[:12]}, which was compared")
        new: ServedModel | SharedModel = await start_model(
            self._build, opened, options, self._metrics, self._tell_health
        )
        try:
            await self._port.use(new)
        except Irv2Error:
            await new.close()
            raise
        return new

    async def _start_shadow(self) -> None:
        """Open the second bundle and compare its answers from now on. Raises Irv2Error."""
        assert isinstance(self._model, ServedModel)  # there is one front end
        self._shadow = shadow = await open_shadow(self._options, self._model)
        self._shadowing = asyncio.create_task(self._use_shadow(shadow))
        self._metrics.watch_shadow(lambda: shadow.report)

    def _follow_with_shadow(self) -> None:
        """Compare with the model that serves now, from nothing, if that can be."""
        if self._shadow is None or self._shadowing is None or self._shadow.state != "comparing":
            return
        assert isinstance(self._model, ServedModel)
        try:
            self._shadow.follow(self._model)
        except UsageError as error:
            logger.error("shadow_off error=%s", error)
            self._shadow.state = "off"
            self._shadowing.cancel()

    async def _use_shadow(self, shadow: Shadow) -> None:
        """Compare until the shadow fails or has earned its promotion; free it before that."""
        try:
            is_accepted = await shadow.run()
        finally:
            await shadow.close()
        if is_accepted:
            await self._promote(shadow)
        await asyncio.to_thread(tidy_up)

    async def _promote(self, shadow: Shadow) -> None:
        """Serve the shadow's bundle, by the artefact and backend that were compared."""
        report, options = shadow.report, self._options
        assert options.shadow
        compared = replace(options, precision=report.precision, backend=report.backend)
        async with self._changing:
            if self._model.description.id != report.model_id:
                logger.warning("not_promoted error=another model was loaded in the meantime")
                shadow.state = "off"
            elif await self._change_to(options.shadow.bundle, compared, report.shadow_id):
                logger.info("promoted bundle=%s", options.shadow.bundle)
                shadow.state = "promoted"
            else:
                shadow.state = "off"

    async def _close(self, old: ServedModel | SharedModel) -> None:
        try:
            await old.close()
            logger.info("closed model=%s", old.description.id[:12])
        except Exception:  # an engine's library may raise anything; the new model serves
            logger.exception("close_failed model=%s", old.description.id[:12])
        del old  # so that the next line can free its memory
        await asyncio.to_thread(tidy_up)

    async def _start_http(self, address: Address, answering: GrpcPort | OwnFrontEnd) -> None:
        # They bring a library for this port alone.
        from irv2.serve.operations.http import HttpServer, OpenRequests
        from irv2.serve.rest.request import Desk
        from irv2.serve.rest.rules import rules

        open_requests = OpenRequests()
        desk = Desk(
            current_model=lambda: answering.model,
            current_engine=lambda: self._model.engine,
            calls=answering.calls,
            is_ready=lambda: self.is_ready,
            tokens=answering.tokens,
            needs_certificate=bool(self._options.tls and self._options.tls.client_ca),
            on_call=self._metrics.observe_call,
            max_message_bytes=self._options.max_message_bytes,
            open_requests=open_requests,
        )
        self._http = HttpServer(
            self._metrics.exposition,
            lambda: self.is_ready,
            self._tls.http_context() if self._tls else None,
            rules=rules(desk, has_page=self._options.has_page),
            open_requests=open_requests,
        )
        self._http_listen = address.on_port(await self._http.start(address.host, address.port))

    async def _tell_health(self) -> None:
        await self._port.tell_health(is_ready=self.is_ready)
