"""What an operator sees: Prometheus metrics of one server, in a registry of its own."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from irv2.v1 import classifier_pb2

_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
REFUSAL_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """Counters and histograms; `observe_*` is called where something happens."""

    def __init__(self, model: classifier_pb2.Model) -> None:
        self._registry = registry = CollectorRegistry()
        info = Gauge("irv2_model_info", "The served model.", ["model_id", "precision", "backend"],
                     registry=registry)  # fmt: skip
        info.labels(model.id, model.precision, model.backend).set(1)
        self._queue = Gauge("irv2_queue_images", "Images admitted and not yet answered.",
                            registry=registry)  # fmt: skip
        self._wait = Gauge("irv2_predicted_wait_seconds", "Time to answer one more image.",
                           registry=registry)  # fmt: skip
        self._batch_images = Histogram("irv2_batch_images", "Images per batch.",
                                       buckets=_BATCH_SIZES, registry=registry)  # fmt: skip
        self._batch_seconds = Histogram("irv2_batch_seconds", "Time of a batch in the engine.",
                                        buckets=_SECONDS, registry=registry)  # fmt: skip
        stages = Histogram("irv2_stage_seconds", "Time of a request's slowest image, by stage.",
                           ["stage"], buckets=_SECONDS, registry=registry)  # fmt: skip
        names = ("queue", "preprocess", "inference", "total")
        self._stages = {name: stages.labels(name) for name in names}
        self._requests = Counter("irv2_requests", "Requests by outcome: ok or why not.",
                                 ["outcome"], registry=registry)  # fmt: skip
        self._refusal = Histogram("irv2_refusal_seconds", "Time to refuse for overload.",
                                  buckets=REFUSAL_SECONDS, registry=registry)  # fmt: skip
        self._image_errors = Counter("irv2_image_errors", "Images refused, by reason.", ["reason"],
                                     registry=registry)  # fmt: skip

    def watch_queue(self, num_images: Callable[[], float], wait_s: Callable[[], float]) -> None:
        """Read queue depth and predicted wait whenever the metrics are asked for."""
        self._queue.set_function(num_images)
        self._wait.set_function(wait_s)

    def observe_batch(self, size: int, seconds: float) -> None:
        """A batch has run."""
        self._batch_images.observe(size)
        self._batch_seconds.observe(seconds)

    def observe_timing(self, timing: classifier_pb2.Timing) -> None:
        """A request was answered."""
        for name, stage in self._stages.items():
            stage.observe(getattr(timing, f"{name}_us") / 1e6)

    def observe_request(self, outcome: str) -> None:
        """A request ended: "ok", "cancelled" or the status code's name."""
        self._requests.labels(outcome).inc()

    def observe_refusal(self, seconds: float) -> None:
        """A request was refused because it can't be answered in time."""
        self._refusal.observe(seconds)

    def observe_image_error(self, reason: str) -> None:
        """An image failed alone."""
        self._image_errors.labels(reason).inc()

    def text(self) -> bytes:
        """The exposition format that Prometheus scrapes."""
        return generate_latest(self._registry)
