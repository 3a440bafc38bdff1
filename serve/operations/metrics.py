"""Prometheus metrics of one server, in a registry of its own."""

from collections import Counter as Tally
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.registry import Collector

from irv2.v1 import classifier_pb2

_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
REFUSAL_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_STAGES = ("queue", "preprocess", "inference", "total")
_REFUSED = ("queue_full", "deadline")  # reasons of irv2.errors.Overloaded
# Places named by irv2.errors.Expired ("queue" includes decoding); "call": gRPC ended the call.
_EXPIRED = ("arrival", "queue", "engine", "call")


class Metrics:
    """Counters and histograms; call `observe_*` when something happens."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory, processor time, open files; on Linux
        self._info = Gauge(
            "irv2_model_info",
            "The served model.",
            ["model_id", "artifact", "precision", "backend"],
            registry=registry,
        )
        self._queue = Gauge(
            "irv2_queue_images", "Images admitted and not yet answered.", registry=registry
        )
        self._wait = Gauge(
            "irv2_predicted_wait_seconds", "Time to answer one more image.", registry=registry
        )
        self._running = Gauge(
            "irv2_running_batches", "Batches in the engine, one per stream.", registry=registry
        )
        self._ready = Gauge("irv2_ready", "1 while new requests are wanted.", registry=registry)
        self.batch_images = Histogram(
            "irv2_batch_images", "Images per batch.", buckets=_BATCH_SIZES, registry=registry
        )
        self.batch_seconds = Histogram(
            "irv2_batch_seconds",
            "Time of a batch in the engine.",
            buckets=_SECONDS,
            registry=registry,
        )
        stages = Histogram(
            "irv2_stage_seconds",
            "Time of a request's slowest image, by stage.",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.stages = {name: stages.labels(name) for name in _STAGES}
        self.model_images = Counter(
            "irv2_model_images",
            "Images that a model's engine has run.",
            ["model_id"],
            registry=registry,
        )
        self._requests = Counter(
            "irv2_requests", "Requests by outcome: ok or why not.", ["outcome"], registry=registry
        )
        self.image_errors = Counter(
            "irv2_image_errors", "Images refused, by reason.", ["reason"], registry=registry
        )
        self.turned_images = Counter(
            "irv2_turned_images",
            "Images whose EXIF orientation the model does not apply.",
            registry=registry,
        )
        self._calls = Counter(
            "irv2_calls", "Calls by the name of their token.", ["caller"], registry=registry
        )
        self._unauthenticated = Counter(
            "irv2_unauthenticated_calls", "Calls without valid token.", registry=registry
        )
        self._reloads = Counter(
            "irv2_reloads", "New bundles by outcome: ok or failed.", ["outcome"], registry=registry
        )
        self._refusal = Histogram(
            "irv2_refusal_seconds",
            "Time to refuse for overload.",
            buckets=REFUSAL_SECONDS,
            registry=registry,
        )
        refused = Counter(
            "irv2_refused",
            "Requests refused for overload, by reason.",
            ["reason"],
            registry=registry,
        )
        self._refused = {reason: refused.labels(reason) for reason in _REFUSED}
        expired = Counter(
            "irv2_expired",
            "Requests that expired, by where they were.",
            ["where"],
            registry=registry,
        )
        self._expired = {where: expired.labels(where) for where in _EXPIRED}

    def watch(
        self,
        num_images: Callable[[], float],
        wait_s: Callable[[], float],
        num_batches: Callable[[], float],
        is_ready: Callable[[], bool],
        num_lines_lost: Callable[[], int],
    ) -> None:
        """Read these numbers at each scrape: queue, wait, batches, readiness, lost log lines."""
        self._queue.set_function(num_images)
        self._wait.set_function(wait_s)
        self._running.set_function(num_batches)
        self._ready.set_function(is_ready)
        self._registry.register(_LinesLost(num_lines_lost))

    def serving(self, model: classifier_pb2.Model, artifact_file: str) -> None:
        """Record that this model takes the requests from now on."""
        self._info.clear()
        self._info.labels(model.id, artifact_file, model.precision, model.backend).set(1)

    def observe_request(self, outcome: str) -> None:
        """Count a request that ended as "ok", "cancelled" or the name of its status code.

        "unread" means that its message never arrived whole: too large, given up or not sent.
        """
        self._requests.labels(outcome).inc()

    def observe_call(self, caller: str) -> None:
        """Count a call whose token has this name; "" means that it had no valid token."""
        if caller:
            self._calls.labels(caller).inc()
        else:
            self._unauthenticated.inc()

    def observe_reload(self, outcome: str) -> None:
        """Count a new bundle that was taken ("ok") or refused ("failed")."""
        self._reloads.labels(outcome).inc()

    def observe_refusal(self, seconds: float, reason: str) -> None:
        """Count a request refused for `reason`, "queue_full" or "deadline", after `seconds`."""
        self._refusal.observe(seconds)
        self._refused[reason].inc()

    def observe_expiry(self, where: str) -> None:
        """Count a request whose deadline passed on "arrival", in the "queue" or in the "engine".

        "call" means that gRPC's own timer ended the call first, wherever the request was.
        """
        self._expired[where].inc()

    def text(self) -> bytes:
        """Return the metrics in the exposition format that Prometheus scrapes."""
        return generate_latest(self._registry)

    def exposition(self, accept: str) -> tuple[str, bytes]:
        """Return content type and metrics: OpenMetrics if the header Accept names it, else text."""
        try:
            encode, content_type = choose_encoder(accept)
        except TypeError:  # what the library makes of a version that is not a number
            encode, content_type = choose_encoder("")
        return content_type, encode(self._registry)


class _LinesLost(Collector):
    """A counter that is read when it is scraped, which the library has for gauges alone."""

    def __init__(self, num_lines_lost: Callable[[], int]) -> None:
        self._num_lines_lost = num_lines_lost

    def collect(self) -> Iterator[CounterMetricFamily]:
        yield CounterMetricFamily(
            "irv2_log_lines_lost",
            "Log lines that stderr didn't take.",
            value=self._num_lines_lost(),
        )


@dataclass(slots=True)
class Statistics:
    """Sums since a model took over, for the Open Inference Protocol; times in nanoseconds."""

    num_images: int = 0
    num_requests: int = 0  # answered
    num_failures: int = 0  # refused, expired, failed or cancelled
    failure_ns: int = 0  # from arrival to failure
    batches: "Tally[int]" = field(default_factory=Tally)  # number of batches by size
    batch_ns: "Tally[int]" = field(default_factory=Tally)  # by size
    stage_ns: "Tally[str]" = field(default_factory=Tally)
    last_ms: int = 0  # when the newest batch ended, since 1970


class ModelMetrics:
    """Report what one model does to the server's metrics, and sum it up for that model."""

    def __init__(self, metrics: Metrics, model_id: str, now_ms: Callable[[], int]) -> None:
        self._metrics, self._now_ms = metrics, now_ms
        self._images = metrics.model_images.labels(model_id)
        self.statistics = Statistics()

    def observe_batch(self, size: int, seconds: float) -> None:
        """Count a batch of `size` images that took `seconds` in the engine."""
        self._metrics.batch_images.observe(size)
        self._metrics.batch_seconds.observe(seconds)
        self._images.inc(size)
        sums = self.statistics
        sums.num_images += size
        sums.batches[size] += 1
        sums.batch_ns[size] += round(seconds * 1e9)
        sums.last_ms = self._now_ms()

    def observe_timing(self, timing: classifier_pb2.Timing) -> None:
        """Count an answered request."""
        self.statistics.num_requests += 1
        for name, stage in self._metrics.stages.items():
            microseconds = getattr(timing, f"{name}_us")
            stage.observe(microseconds / 1e6)
            self.statistics.stage_ns[name] += microseconds * 1000

    def observe_image_error(self, reason: str) -> None:
        """Count an image that failed while its request went on."""
        self._metrics.image_errors.labels(reason).inc()

    def observe_turned_image(self) -> None:
        """Count an image whose EXIF orientation the model does not apply."""
        self._metrics.turned_images.inc()

    def observe_failure(self, seconds: float) -> None:
        """Count a request that failed `seconds` after its arrival."""
        self.statistics.num_failures += 1
        self.statistics.failure_ns += round(seconds * 1e9)
