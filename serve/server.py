"""The server put together, from a bundle to the last answer after SIGTERM."""

import asyncio
import json
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
import msgspec
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from irv2.bundle import Artifact, Bundle
from irv2.decode import ImageLimits
from irv2.errors import BundleError, UsageError
from irv2.inference import open_inference_pb2_grpc
from irv2.runners.base import Runner
from irv2.runners.choose import open_best
from irv2.v1 import classifier_pb2, classifier_pb2_grpc
from serve.address import Address
from serve.answering import Answering
from serve.batcher import Batcher
from serve.decoder import Decoder
from serve.http import HttpServer
from serve.metrics import Metrics
from serve.open_inference import SERVICE as OPEN_INFERENCE
from serve.open_inference import OpenInference
from serve.pipeline import Pipeline
from serve.servicer import Classifier

logger = logging.getLogger(__name__)

SERVICE = "irv2.v1.Classifier"
WARM_UP_SIZES = (1, 2, 4, 8)
# Beyond this a CPU gains nothing from larger batches, and requests only wait longer.
CPU_MAX_BATCH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """The options of `irv2-serve`; its help describes them."""

    listen: Address
    http: Address | None
    insecure: bool
    precision: str | None
    backend: str | None
    num_threads: int
    num_decode_threads: int
    max_batch: int | None
    max_queue: int
    max_queue_delay_ms: float
    default_deadline_ms: int
    grace_s: float
    max_message_bytes: int
    max_images: int
    max_image_bytes: int
    max_image_pixels: int

    def __post_init__(self) -> None:
        for address in filter(None, (self.listen, self.http)):
            if not address.is_loopback and not self.insecure:
                raise UsageError(
                    address, "would take unencrypted requests from other machines",
                    "an address of this machine alone", "add --insecure if that is wanted",
                )  # fmt: skip


def serve(bundle_path: Path, options: ServeOptions, on_ready: "Callable[[Server], None]") -> int:
    """Serve until a signal; returns the exit status: 0 after SIGTERM, 130 after Ctrl-C.

    `on_ready` is called once requests are answered.
    """
    bundle = Bundle.open(bundle_path)
    artifact, runner = open_best(bundle, options.precision, options.backend, options.num_threads)
    with runner:
        _check_fits(bundle, artifact, runner)
        stopped_by = asyncio.run(_serve(bundle, artifact, runner, options, on_ready))
    return 130 if stopped_by == signal.SIGINT else 0


async def _serve(
    bundle: Bundle, artifact: Artifact, runner: Runner, options: ServeOptions,
    on_ready: "Callable[[Server], None]",
) -> signal.Signals:  # fmt: skip
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, signals.put_nowait, each)
    server = Server(bundle, artifact, runner, options)
    try:
        await server.start()
        on_ready(server)
        stopped_by = await signals.get()
        await server.announce_stop()
        if stopped_by == signal.SIGTERM:
            logger.info("stopping grace_s=%g", options.grace_s)
            await _wait_for_signal(signals, options.grace_s)  # a second one ends the grace
    finally:
        await server.stop()
    return stopped_by


async def _wait_for_signal(signals: "asyncio.Queue[signal.Signals]", timeout_s: float) -> None:
    waiting = asyncio.create_task(signals.get())
    await asyncio.wait({waiting}, timeout=timeout_s)
    waiting.cancel()


class Server:
    """The ports of one process and what answers on them. Belongs to one event loop."""

    def __init__(
        self, bundle: Bundle, artifact: Artifact, runner: Runner, options: ServeOptions
    ) -> None:  # fmt: skip
        self._options, self._runner = options, runner
        self._max_batch = _max_batch(artifact, runner, options.max_batch)
        self._model = _model(bundle, artifact, runner, self._max_batch)
        self._metrics = Metrics(self._model)
        image_limits = ImageLimits(
            max_bytes=options.max_image_bytes, max_pixels=options.max_image_pixels
        )
        num_threads = options.num_decode_threads or len(os.sched_getaffinity(0))
        self._decoder = Decoder(bundle.preprocess, image_limits, num_threads)
        self._batcher = Batcher(
            runner, max_batch=self._max_batch, max_queue=options.max_queue,
            max_queue_delay_ms=options.max_queue_delay_ms, prepare_s=self._decoder.predict,
            on_batch=self._metrics.observe_batch,
        )  # fmt: skip
        self._metrics.watch_queue(
            lambda: self._batcher.num_admitted, lambda: self._batcher.predicted_wait_s()
        )
        self._pipeline = Pipeline(
            self._model, _limits(options), self._decoder, self._batcher, self._metrics
        )
        self._health = health.aio.HealthServicer()
        self._grpc = self._grpc_server()
        self._is_ready = False
        self._http = HttpServer(self._metrics.text, lambda: self._is_ready)
        self._listen, self._http_listen = options.listen, options.http

    async def start(self) -> None:
        """Open the ports, warm up, be ready. Raises Irv2Error where a port can't be had."""
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        self._bind()
        if self._http_listen:
            host, port = self._http_listen.host, self._http_listen.port
            try:
                self._http_listen = Address(host, await self._http.start(host, port))
            except OSError as error:
                raise self._http_listen.why_not() from error
        await self._grpc.start()
        sizes = {size for size in WARM_UP_SIZES if size < self._max_batch} | {self._max_batch}
        await self._pipeline.warm_up(sorted(sizes))
        self._pipeline.is_serving = self._is_ready = True
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)

    async def announce_stop(self) -> None:
        """Tell load balancers to go elsewhere; requests are still answered."""
        self._is_ready = False
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)

    async def stop(self) -> None:
        """Take no new request, answer the open ones, close everything."""
        await self._grpc.stop(self._options.default_deadline_ms / 1e3)
        await self._batcher.close()
        self._decoder.close()
        await self._http.stop()

    @property
    def description(self) -> dict[str, object]:
        """Where the server listens and what it serves."""
        return {
            "listen": str(self._listen),
            "http": str(self._http_listen) if self._http_listen else None,
            "model_id": self._model.id,
            "precision": self._model.precision,
            "backend": self._model.backend,
            "max_batch": self._model.max_batch,
        }

    @property
    def ready_line(self) -> str:
        """`ready HOST:PORT` and what answers there."""
        model = self._model
        http = f" http={self._http_listen}" if self._http_listen else ""
        return (
            f"ready {self._listen} model={model.id[:12]} precision={model.precision} "
            f"backend={model.backend} max_batch={model.max_batch}{http}"
        )

    def _grpc_server(self) -> grpc.aio.Server:
        server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 0),  # or two servers would share a port, each unknowing
                ("grpc.max_receive_message_length", self._options.max_message_bytes),
                ("grpc.max_send_message_length", -1),
            ]
        )
        answering = Answering(self._metrics, self._options.default_deadline_ms / 1e3)
        classifier = Classifier(self._pipeline, answering)
        classifier_pb2_grpc.add_ClassifierServicer_to_server(classifier, server)
        open_inference = OpenInference(
            self._pipeline, answering, self._runner.image_size, lambda: self._is_ready
        )
        open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(open_inference, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (SERVICE, OPEN_INFERENCE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        return server

    def _bind(self) -> None:
        try:
            port = self._grpc.add_insecure_port(str(self._listen))
        except RuntimeError as error:
            raise self._listen.why_not() from error
        self._listen = Address(self._listen.host, port)

    async def _set_health(self, status: "health_pb2.HealthCheckResponse.ServingStatus") -> None:
        for service in ("", SERVICE):
            await self._health.set(service, status)


def _check_fits(bundle: Bundle, artifact: Artifact, runner: Runner) -> None:
    found = (runner.image_size, runner.num_classes)
    expected = (bundle.preprocess.crop, len(bundle.classes))
    if found != expected:
        raise BundleError(
            bundle.path / artifact.file,
            f"takes {found[0]} pixels and gives {found[1]} classes",
            f"{expected[0]} and {expected[1]}, as bundle.json says", "export it again",
        )  # fmt: skip
    sha256 = runner.metadata.get("preprocess_sha256", bundle.preprocess.sha256)
    if sha256 != bundle.preprocess.sha256:
        raise BundleError(
            bundle.path / artifact.file, f"was exported for preprocessing {sha256[:12]}",
            f"{bundle.preprocess.sha256[:12]}, as bundle.json says", "export it again",
        )  # fmt: skip


def _max_batch(artifact: Artifact, runner: Runner, asked_for: int | None) -> int:
    most = min(artifact.max_batch, runner.max_batch)
    if asked_for is None:
        return min(most, CPU_MAX_BATCH) if runner.backend.endswith("-cpu") else most
    if asked_for > most:
        raise UsageError("--max-batch", str(asked_for), f"at most {most}, what the gate certified")
    return asked_for


def _model(
    bundle: Bundle, artifact: Artifact, runner: Runner, max_batch: int
) -> classifier_pb2.Model:  # fmt: skip
    return classifier_pb2.Model(
        id=bundle.id,
        arch=bundle.manifest.source.arch,
        classes=bundle.classes,
        precision=artifact.precision,
        backend=runner.backend,
        max_batch=max_batch,
        preprocess_json=json.dumps(bundle.manifest.preprocess),
        parity_json=msgspec.json.encode(artifact.parity).decode(),
    )


def _limits(options: ServeOptions) -> classifier_pb2.Limits:
    return classifier_pb2.Limits(
        max_message_bytes=options.max_message_bytes,
        max_images=options.max_images,
        max_image_bytes=options.max_image_bytes,
        max_image_pixels=options.max_image_pixels,
    )
