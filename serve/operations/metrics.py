"""Prometheus metrics of one server, in a registry of its own."""

import asyncio
import os
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
    values,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from irv2.measures.shadow import ShadowReport
from irv2.types import IntArray
from irv2.v1 import classifier_pb2

COUNT_EVERY_S = 1.0
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
REFUSAL_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_STAGES = ("queue", "preprocess", "inference", "total")
_REFUSED = ("queue_full", "deadline")  # reasons of irv2.errors.Overloaded
_SUMMED = (
    "process_virtual_memory_bytes",
    "process_resident_memory_bytes",
    "process_cpu_seconds",
    "process_open_fds",
)
# Places named by irv2.errors.Expired ("queue" includes decoding); "call": gRPC ended the call.
_EXPIRED = ("arrival", "queue", "engine", "call")


def share_metrics(folder: str, process: str) -> None:
    """Let this process count in files of `folder`, where others count too.

    Call it before `Metrics(folder)`. A process that takes the place of one of the same name goes on
    with its numbers.
    """
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    values.ValueClass = values.MultiProcessValue(lambda: process)  # type: ignore[no-untyped-call]


class Metrics:
    """Counters and histograms; call `observe_*` when something happens."""

    def __init__(self, folder: str | None = None) -> None:
        """Show what this process counts, or what all have counted in `folder`."""
        self._registry = registry = CollectorRegistry()
        if folder:
            MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
            registry = CollectorRegistry()  # for what this process counts, shown by that one
        self._processes = _Processes()
        self._registry.register(self._processes)
        self._served: tuple[str, str, str, str] | None = None
        self._lines_lost = Counter(
            "irv2_log_lines_lost", "Log lines that stderr didn't take.", registry=registry
        )
        self._num_lines_lost: Callable[[], int] = lambda: 0
        self._num_counted = 0
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
        gauge = GaugeMetricFamily
        families: list[Callable[[], Metric]] = [
            lambda: gauge(
                "irv2_queue_images", "Images admitted and not yet answered.", num_images()
            ),
            lambda: gauge(
                "irv2_predicted_wait_seconds", "Time to answer one more image.", wait_s()
            ),
            lambda: gauge(
                "irv2_running_batches", "Batches in the engine, one per stream.", num_batches()
            ),
            lambda: gauge("irv2_ready", "1 while new requests are wanted.", is_ready()),
            self._info,
        ]
        self._registry.register(_ReadAtScrape(families))
        self._num_lines_lost = num_lines_lost

    def watch_shadow(self, report: Callable[[], ShadowReport]) -> None:
        """Show at each scrape what the shadow has counted."""
        self._registry.register(_ShadowAtScrape(report))

    def watch_processes(self, pids: Callable[[], list[int]]) -> None:
        """Add these children of this process to its memory, processor time and open files."""
        self._processes.children = pids

    def serving(self, model: classifier_pb2.Model, artifact_file: str) -> None:
        """Record that this model takes the requests from now on."""
        self._served = (model.id, artifact_file, model.precision, model.backend)

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
        self._count_lost_lines()
        return generate_latest(self._registry)

    def exposition(self, accept: str) -> tuple[str, bytes]:
        """Return content type and metrics: OpenMetrics if the header Accept names it, else text."""
        self._count_lost_lines()
        try:
            encode, content_type = choose_encoder(accept)
        except TypeError:  # what the library makes of a version that is not a number
            encode, content_type = choose_encoder("")
        return content_type, encode(self._registry)

    async def count_lost_lines(self, num_lines_lost: Callable[[], int]) -> None:
        """Count them in a process that is not scraped itself, until cancelled."""
        self._num_lines_lost = num_lines_lost
        while True:
            self._count_lost_lines()
            await asyncio.sleep(COUNT_EVERY_S)

    def _count_lost_lines(self) -> None:
        new = self._num_lines_lost() - self._num_counted
        self._lines_lost.inc(new)
        self._num_counted += new

    def _info(self) -> Metric:
        labels = ["model_id", "artifact", "precision", "backend"]
        info = GaugeMetricFamily("irv2_model_info", "The served model.", labels=labels)
        if self._served:
            info.add_metric(self._served, 1)
        return info


class _Processes(Collector):
    """Memory, processor time and open files, with those of children; on Linux.

    Memory that processes share counts in each.
    """

    def __init__(self) -> None:
        self.children: Callable[[], list[int]] = list

    def collect(self) -> Iterator[Metric]:
        sums = {family.name: family for family in _measured("self")}
        for pid in self.children():
            for family in _measured(pid):
                if family.name in _SUMMED and family.name in sums:  # it may have ended
                    _add(sums[family.name], family.samples[0].value)
        if "process_cpu_seconds" in sums:
            ended = resource.getrusage(resource.RUSAGE_CHILDREN)
            _add(sums["process_cpu_seconds"], ended.ru_utime + ended.ru_stime)
        yield from sums.values()


def _measured(pid: int | str) -> Iterable[Metric]:
    return ProcessCollector(pid=lambda: pid, registry=None).collect()


def _add(family: Metric, value: float) -> None:
    [sample] = family.samples
    family.samples = [sample._replace(value=sample.value + value)]


class _ReadAtScrape(Collector):
    """Gauges that are read when they are scraped, also where counters are shared."""

    def __init__(self, families: list[Callable[[], Metric]]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for family in self._families:
            yield family()


class _ShadowAtScrape(Collector):
    """What the shadow has counted."""

    def __init__(self, report: Callable[[], ShadowReport]) -> None:
        self._report = report

    def collect(self) -> Iterator[Metric]:
        yield from self._report().families()


@dataclass(frozen=True, slots=True)
class Sums:
    """What was counted since a model took over, int64, perhaps in memory of several processes."""

    requests: IntArray  # (processes, len(_OF_REQUESTS)), each row written by one process
    batches: IntArray  # (2, max_batch + 1), by size: how many, and their nanoseconds
    last_ms: IntArray  # (1,): when the newest batch ended, since 1970

    @classmethod
    def shapes(cls, num_processes: int, max_batch: int) -> list[tuple[int, ...]]:
        """The shapes of the arrays."""
        return [(num_processes, len(_OF_REQUESTS)), (2, max_batch + 1), (1,)]

    @classmethod
    def of_one_process(cls, max_batch: int) -> Self:
        """Nothing counted yet."""
        return cls(*(np.zeros(shape, np.int64) for shape in cls.shapes(1, max_batch)))


_OF_REQUESTS = ("num_requests", "num_failures", "failure_ns", *_STAGES)


@dataclass(frozen=True, slots=True)
class Statistics:
    """Sums since a model took over, for the Open Inference Protocol; times in nanoseconds."""

    num_images: int
    num_requests: int  # answered
    num_failures: int  # refused, expired, failed or cancelled
    failure_ns: int  # from arrival to failure
    batches: dict[int, int]  # number of batches by size
    batch_ns: dict[int, int]  # by size
    stage_ns: dict[str, int]
    last_ms: int  # when the newest batch ended, since 1970; 0 before the first


class ModelMetrics:
    """Report what one model does to the server's metrics, and sum it up for that model."""

    def __init__(
        self,
        metrics: Metrics,
        model_id: str,
        sums: Sums,
        row: int = 0,
        now_ms: Callable[[], int] = lambda: int(time.time() * 1e3),
    ) -> None:
        """Requests are counted in this `row` of `sums`."""
        self._metrics, self._now_ms = metrics, now_ms
        self._images = metrics.model_images.labels(model_id)
        self._sums, self._requests = sums, sums.requests[row]

    @property
    def statistics(self) -> Statistics:
        """What all processes have done."""
        requests = dict(zip(_OF_REQUESTS, self._sums.requests.sum(axis=0).tolist(), strict=True))
        counts, batch_ns = self._sums.batches.tolist()
        sizes = [size for size, count in enumerate(counts) if count]
        return Statistics(
            num_images=sum(size * counts[size] for size in sizes),
            num_requests=requests["num_requests"],
            num_failures=requests["num_failures"],
            failure_ns=requests["failure_ns"],
            batches={size: counts[size] for size in sizes},
            batch_ns={size: batch_ns[size] for size in sizes},
            stage_ns={stage: requests[stage] for stage in _STAGES},
            last_ms=int(self._sums.last_ms[0]),
        )

    def observe_batch(self, size: int, seconds: float) -> None:
        """Count a batch of `size` images that took `seconds` in the engine."""
        self._metrics.batch_images.observe(size)
        self._metrics.batch_seconds.observe(seconds)
        self._images.inc(size)
        self._sums.batches[:, size] += (1, round(seconds * 1e9))
        self._sums.last_ms[0] = self._now_ms()

    def observe_timing(self, timing: classifier_pb2.Timing) -> None:
        """Count an answered request."""
        microseconds = [getattr(timing, f"{name}_us") for name in _STAGES]
        for stage, time_us in zip(self._metrics.stages.values(), microseconds, strict=True):
            stage.observe(time_us / 1e6)
        self._requests += (1, 0, 0, *(time_us * 1000 for time_us in microseconds))

    def observe_image_error(self, reason: str) -> None:
        """Count an image that failed while its request went on."""
        self._metrics.image_errors.labels(reason).inc()

    def observe_turned_image(self) -> None:
        """Count an image whose EXIF orientation the model does not apply."""
        self._metrics.turned_images.inc()

    def observe_failure(self, seconds: float) -> None:
        """Count a request that failed `seconds` after its arrival."""
        self._requests[1:3] += (1, round(seconds * 1e9))
