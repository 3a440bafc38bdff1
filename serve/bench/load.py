"""`irv2 bench load`: how the server copes with a given rate of requests, also with too high a one.

Open loop: Poisson arrivals that do not wait for answers; latency counts from the time a request
was meant to be sent; goodput counts right answers within their deadline. Capacity is the rate of a
closed loop before and after each load, since machines drift. `refusal_p99_ms_in_server` counts from
the handler on; the wait in gRPC before Python sees a call is in `refusal_ms`, the clients' view.
"""

import asyncio
import re
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
from tabulate import tabulate

from irv2.bench.rounds import machine, machine_lock
from irv2.bundle import Bundle
from irv2.cli.options import FloatRange, json_option, print_json
from irv2.cli.program import Program
from irv2.images.resample import RESAMPLERS
from irv2.serve.bench.clients import Call, ClosedLoop, GrpcTarget, num_wrong, open_loop
from irv2.serve.bench.site import (
    Served,
    make_pictures,
    our_server,
    our_top1,
    served,
    split_options,
    write_tiny_bundle,
)
from irv2.serve.operations.metrics import REFUSAL_SECONDS

CLIENTS = 16  # of the closed loop that measures the capacity
MEMORY_EVERY_S = 0.5
REFUSED, EXPIRED = "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"
# gRPC's own answer while more than a thousand calls wait for Python.
SHED = "CANCELLED"
REFUSALS = re.compile(r'^irv2_refusal_seconds_bucket\{le="([^"]+)"\} (\S+)$', re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Loads as `factors` of the capacity, offered one after another for `seconds` each."""

    factors: tuple[float, ...]
    seconds: float
    deadline_s: float
    server_options: str


@dataclass(slots=True)
class Load:
    """One open loop against a server, with what clients got and what the server used."""

    process: Served
    target: GrpcTarget
    expected: Sequence[int]
    rss_mb: list[float] = field(default_factory=list)

    async def offer(self, rate: float, options: Options) -> dict[str, Any]:
        """Send requests at random times, `rate` per second on average, and return what happened."""
        num_requests = max(1, round(rate * options.seconds))
        due_s = np.random.default_rng(0).exponential(1 / rate, num_requests).cumsum().tolist()
        refusals, server_s, client_s = self._refusals(), self.process.cpu_s(), time.process_time()
        watching = asyncio.create_task(self._watch_memory())
        started_at = time.perf_counter()
        calls = await open_loop(self.target, due_s, options.deadline_s)
        elapsed_s = time.perf_counter() - started_at
        watching.cancel()
        return {
            "offered_per_s": round(rate, 1),
            **self._outcomes(calls, options.deadline_s, elapsed_s),
            "refusal_p99_ms_in_server": _refusal_p99_ms(self._refusals() - refusals),
            "server_cores": round((self.process.cpu_s() - server_s) / elapsed_s, 2),
            "client_cores": round((time.process_time() - client_s) / elapsed_s, 2),
            "rss_mb": {"first": self.rss_mb[0], "max": max(self.rss_mb), "last": self.rss_mb[-1]},
        }

    def _outcomes(
        self, calls: Sequence[Call], deadline_s: float, elapsed_s: float
    ) -> dict[str, Any]:
        answered = [call for call in calls if call.outcome == "ok"]
        refused = [call for call in calls if call.outcome == REFUSED]
        num_expired = sum(call.outcome == EXPIRED for call in calls)
        num_shed = sum(call.outcome == SHED for call in calls)
        num_accepted = len(calls) - len(refused) - num_shed
        num_in_time = sum(call.done_at - call.due_at <= deadline_s for call in answered)
        wrong = num_wrong(calls, self.target.top1, self.expected)
        return {
            "goodput_per_s": round((num_in_time - wrong) / elapsed_s, 1),
            "num_sent": len(calls),
            "num_answered": len(answered),
            "num_wrong": wrong,
            "num_refused": len(refused),
            "num_expired": num_expired,
            "num_shed": num_shed,
            "num_failed": num_accepted - len(answered) - num_expired,
            "expired_of_accepted": round(num_expired / max(1, num_accepted), 4),
            "answer_ms": _percentiles_ms([call.done_at - call.due_at for call in answered]),
            "refusal_ms": _percentiles_ms([call.done_at - call.due_at for call in refused]),
            "sent_late_ms": _percentiles_ms([call.sent_at - call.due_at for call in calls]),
        }

    async def _watch_memory(self) -> None:
        while True:
            self.rss_mb.append(round(self.process.rss_mb(), 1))
            await asyncio.sleep(MEMORY_EVERY_S)

    def _refusals(self) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
        """Return the server's histogram: how many refusals took at most each of REFUSAL_SECONDS."""
        with urllib.request.urlopen(f"http://{self.process.http}/metrics", timeout=10) as response:
            text = response.read().decode()
        return np.array([float(count) for _, count in REFUSALS.findall(text)])


def _refusal_p99_ms(at_most: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> float | None:
    """Return the upper bound of the bucket with the 99th percentile; None without refusals."""
    if not at_most.size or not at_most[-1]:
        return None
    bounds = (*REFUSAL_SECONDS, float("inf"))
    return bounds[int(np.argmax(at_most >= 0.99 * at_most[-1]))] * 1e3


def _percentiles_ms(seconds: Sequence[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
    return {"p50": round(float(p50), 2), "p99": round(float(p99), 2)}


def bench(bundle: Bundle, options: Options) -> dict[str, Any]:
    """Offer each factor of the capacity, and measure the capacity before and after."""
    pictures = make_pictures()
    file, _, expected = our_top1(bundle, pictures)
    given = split_options(options.server_options)
    command = our_server(bundle.path, "--http", "127.0.0.1:0", *given)
    with served(command) as process, asyncio.Runner() as runner:
        target = GrpcTarget(process.address, pictures)
        closed = ClosedLoop(target, CLIENTS, process.cpu_s)

        def measure_capacity() -> float:
            return runner.run(closed.window(options.seconds / 3, settle_s=1.0)).rate

        capacities, loads = [measure_capacity()], []
        for factor in options.factors:
            load = Load(process, target, expected)
            seen = runner.run(load.offer(factor * capacities[-1], options))
            capacities.append(measure_capacity())
            capacity = (capacities[-2] + capacities[-1]) / 2
            of_capacity = round(seen["goodput_per_s"] / capacity, 3)
            shown = {"capacity_per_s": round(capacity, 1), "goodput_of_capacity": of_capacity}
            loads.append({"factor": factor, **shown, **seen})
        return {
            "machine": machine(),
            "arch": bundle.manifest.source.arch,
            "file": file,
            "server_options": options.server_options,
            "distinct_answers": len(set(expected)),
            "capacities_per_s": [round(capacity, 1) for capacity in capacities],
            "deadline_s": options.deadline_s,
            "seconds": options.seconds,
            "loads": loads,
        }


def _table(result: dict[str, Any]) -> str:
    columns = (
        "factor",
        "capacity_per_s",
        "goodput_of_capacity",
        "num_sent",
        "num_refused",
        "num_expired",
        "num_shed",
        "num_failed",
        "num_wrong",
        "client_cores",
    )
    rows = [
        [*(load[column] for column in columns), *map(_p99, (load["answer_ms"], load["refusal_ms"]))]
        for load in result["loads"]
    ]
    return tabulate(rows, [*columns, "answer_p99_ms", "refusal_p99_ms"])


def _p99(percentiles: dict[str, float] | None) -> float | None:
    return percentiles["p99"] if percentiles else None


@click.command(cls=Program)
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option(
    "--factor", "factors", type=FloatRange(0, min_open=True), multiple=True,
    default=(0.5, 0.9, 3.0, 10.0), help="Rate as a multiple of the capacity; several in turn.",
)  # fmt: skip
@click.option(
    "--seconds", type=FloatRange(0, min_open=True), default=60.0, help="Length of each load."
)
@click.option(
    "--deadline-ms", type=click.IntRange(1), default=2000, help="Time each request is given."
)
@click.option(
    "--resampling", type=click.Choice(list(RESAMPLERS)), default="torch7-bicubic",
    help="Preprocessing of the tiny network.",
)  # fmt: skip
@click.option(
    "--server-options", default="", metavar="OPTIONS",
    help="Options of irv2-serve that the server is started with.",
)  # fmt: skip
@json_option
def main(
    bundle: Path | None,
    factors: tuple[float, ...],
    seconds: float,
    deadline_ms: int,
    resampling: str,
    server_options: str,
    as_json: bool,
) -> None:
    """Offer the server of BUNDLE, or of a tiny network, several times what it can do.

    Report goodput, refusals and their latency, expired requests and memory; every answer is
    checked. Goodput is given as a share of the mean capacity before and after the load, and the
    server's own time for a refusal counts from its handler on.
    """
    options = Options(
        factors=factors,
        seconds=seconds,
        deadline_s=deadline_ms / 1e3,
        server_options=server_options,
    )
    with machine_lock(), tempfile.TemporaryDirectory() as folder:
        path = bundle or write_tiny_bundle(Path(folder) / "tiny.bundle", resampling)
        result = bench(Bundle.open(path), options)
    print_json(result) if as_json else click.echo(_table(result))
