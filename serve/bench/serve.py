"""`irv2 bench serve`: what answering over gRPC costs, compared with the same work without a server.

Every case is a real process on loopback; cases take turns within a round (irv2.bench.rounds). The
server's own figure is the ratio to `bare loop`: decoder and engine in one process without gRPC.
"""

import asyncio
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
from tabulate import tabulate

from irv2.bench.rounds import Rounds, machine, machine_lock, run_rounds
from irv2.bundle import Bundle
from irv2.cli.options import FloatRange, json_option, print_json
from irv2.cli.program import Program
from irv2.errors import EngineError
from irv2.images.resample import RESAMPLERS
from irv2.serve.bench.clients import ClosedLoop, GrpcTarget, HttpTarget, Target, Window, num_wrong
from irv2.serve.bench.peers import PillowModel
from irv2.serve.bench.site import (
    Served,
    make_pictures,
    our_server,
    our_top1,
    served,
    split_options,
    write_tiny_bundle,
)

CLIENTS = (1, 4, 16)
ONNXRUNTIME = "onnxruntime-cpu"  # our server on it, where it takes another backend
MAIN_CASE = "irv2 16"  # compared with the others, and with itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How long to measure; `settle_s` before each window is not counted."""

    seconds: float
    settle_s: float
    num_rounds: int
    peers: bool
    server_options: tuple[str, ...]  # each a server beside the plain one


@dataclass(slots=True)
class Case:
    """A server, a number of clients, and what each round measured."""

    process: Served
    loop: ClosedLoop
    expected: Sequence[int]
    windows: list[Window] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return medians over the rounds, and the wrong answers of all rounds."""
        calls = [call for window in self.windows for call in window.calls]
        return {
            "requests_per_s": round(self._median(lambda w: w.rate), 1),
            "p50_ms": round(self._median(lambda w: w.latency_ms(50)), 2),
            "p99_ms": round(self._median(lambda w: w.latency_ms(99)), 2),
            "server_cpu_ms": round(self._median(lambda w: w.server_cpu_s / len(w.calls)) * 1e3, 2),
            "client_cpu_ms": round(self._median(lambda w: w.client_cpu_s / len(w.calls)) * 1e3, 2),
            "num_answers": len(calls),
            "num_wrong": num_wrong(calls, self.loop.target.top1, self.expected),
        }

    def _median(self, figure: Callable[[Window], float]) -> float:
        return float(np.median([figure(window) for window in self.windows]))


def bench(bundle: Bundle, options: Options) -> dict[str, Any]:
    """Measure irv2-serve with 1, 4 and 16 clients beside the bare loop and the peers."""
    pictures = make_pictures()
    file, backend, ours = our_top1(bundle, pictures)
    theirs = _pillow_top1(bundle, file, backend, pictures)
    with ExitStack() as stack, asyncio.Runner() as runner:

        def start(module: str, *arguments: str) -> Served:
            return stack.enter_context(served([sys.executable, "-m", module, *arguments]))

        where = (str(bundle.path), file, backend)
        processes: dict[str, Served] = {}
        idle_mb: dict[str, float] = {}
        for given in ("", *options.server_options):
            command = our_server(bundle.path, *split_options(given))
            process = processes[given or "irv2"] = stack.enter_context(served(command))
            idle_mb[given or "irv2"] = round(process.rss_mb(), 1)
        bare = start("irv2.serve.bench.peers", "bare", *where)
        cases: dict[str, Case] = {}
        target: Target
        for name, process in processes.items():
            target = GrpcTarget(process.address, pictures)
            for n in CLIENTS:
                cases[f"{name} {n}"] = _case(process, target, n, ours)
        if backend != ONNXRUNTIME and _is_served_on(bundle, ONNXRUNTIME):
            command = our_server(bundle.path, "--backend", ONNXRUNTIME)
            processes[ONNXRUNTIME] = stack.enter_context(served(command))
            target = GrpcTarget(processes[ONNXRUNTIME].address, pictures)
            *_, expected = our_top1(bundle, pictures, ONNXRUNTIME)
            cases[f"{ONNXRUNTIME} 16"] = _case(processes[ONNXRUNTIME], target, 16, expected)
        if options.peers:
            processes["naive"] = start("irv2.serve.bench.peers", "naive", *where)
            target = GrpcTarget(processes["naive"].address, pictures)
            for n in (1, 16):
                cases[f"naive {n}"] = _case(processes["naive"], target, n, theirs)
        if options.peers and find_spec("litserve"):
            processes["litserve"] = start("irv2.serve.bench.litserve", *where)
            target = HttpTarget(processes["litserve"].address, pictures)
            cases["litserve 16"] = _case(processes["litserve"], target, 16, theirs)

        runs: dict[str, Callable[[], float]] = {
            name: partial(_measure, runner, case, options) for name, case in cases.items()
        }
        runs["bare loop"] = lambda: float(bare.ask(str(options.seconds)))
        rounds = run_rounds(runs, options.num_rounds, aa=MAIN_CASE, title="bench serve")
        return {
            "machine": machine(),
            "bundle": _description(bundle, file, backend, ours),
            "window_s": options.seconds,
            "rounds": options.num_rounds,
            "cases": {name: case.to_json() for name, case in cases.items()},
            "bare_loop_images_per_s": round(rounds.median("bare loop"), 1),
            "ratios": _ratios(rounds, cases),
            "void": rounds.is_void(MAIN_CASE),
            "processes": {
                name: {"ready_s": round(process.ready_s, 2), "rss_mb": round(process.rss_mb(), 1)}
                | ({"idle_mb": idle_mb[name]} if name in idle_mb else {})
                for name, process in processes.items()
            },
        }


def _is_served_on(bundle: Bundle, backend: str) -> bool:
    rows = [row for artifact in bundle.artifacts for row in artifact.known]
    return any((row.backend, row.parity.verdict) == (backend, "passed") for row in rows)


def _pillow_top1(bundle: Bundle, file: str, backend: str, pictures: Sequence[bytes]) -> list[int]:
    """Return the answers expected from servers that decode with Pillow."""
    model = PillowModel(bundle, file, backend)
    return [int(model.run([model.decode(picture)])[0].argmax()) for picture in pictures]


def _case(process: Served, target: Target, num_clients: int, expected: Sequence[int]) -> Case:
    return Case(process, ClosedLoop(target, num_clients, process.cpu_s), expected)


def _measure(runner: asyncio.Runner, case: Case, options: Options) -> float:
    try:
        window = runner.run(case.loop.window(options.seconds, options.settle_s))
    except ExceptionGroup as failures:  # one per client
        first = failures.exceptions[0]
        raise EngineError(case.process.address, f"failed under load ({first!r})") from failures
    case.windows.append(window)
    return window.rate


def _ratios(rounds: Rounds, cases: dict[str, Case]) -> dict[str, Any]:
    """Divide our rate by the others' with as many clients, 1 or 16; the bare loop has none."""
    others = [name for name in cases if not name.startswith("irv2")]
    pairs = [(MAIN_CASE, "bare loop")]
    for n in (1, 16):
        pairs += [(f"irv2 {n}", name) for name in others if name.endswith(f" {n}")]
    ratios = {f"{own} / {name}": rounds.ratio(own, name).to_json() for own, name in pairs}
    return ratios | {"A/A": rounds.aa(MAIN_CASE).to_json()}


def _description(
    bundle: Bundle, file: str, backend: str, expected: Sequence[int]
) -> dict[str, Any]:
    return {
        "arch": bundle.manifest.source.arch,
        "file": file,
        "backend": backend,
        "resampling": bundle.preprocess.resampling,
        "distinct_answers": len(set(expected)),
    }


def _table(result: dict[str, Any]) -> str:
    columns = ("requests_per_s", "p50_ms", "p99_ms", "server_cpu_ms", "client_cpu_ms", "num_wrong")
    rows = [[name, *(case[c] for c in columns)] for name, case in result["cases"].items()]
    rows.append(["bare loop", result["bare_loop_images_per_s"]])
    lines = [tabulate(rows, ["case", *columns]), ""]
    for name, ratio in result["ratios"].items():
        lines.append(f"{name}: {ratio['ratio']} ({ratio['lower_95']} to {ratio['upper_95']})")
    for name, process in result["processes"].items():
        idle = f", {process['idle_mb']} MB before the load" if "idle_mb" in process else ""
        lines.append(f"{name}: {process['rss_mb']} MB, ready in {process['ready_s']} s{idle}")
    if result["void"]:
        lines.append("void: the same case differed from itself; the machine is not quiet")
    return "\n".join(lines)


@click.command(cls=Program)
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option(
    "--seconds", type=FloatRange(0, min_open=True), default=3.0, help="Length of one window."
)
@click.option(
    "--settle-s", type=FloatRange(0), default=0.5,
    help="Load before each window, not counted.",
)  # fmt: skip
@click.option("--rounds", type=click.IntRange(1), default=9, help="Windows per case.")
@click.option(
    "--resampling", type=click.Choice(list(RESAMPLERS)), default="torch7-bicubic",
    help="Preprocessing of the tiny network.",
)  # fmt: skip
@click.option("--peers/--no-peers", default=True, help="Measure naive grpc.aio and LitServe too.")
@click.option(
    "--server-options", multiple=True, metavar="OPTIONS",
    help="Measure a server with these options of irv2-serve too; several times for several.",
)  # fmt: skip
@json_option
def main(
    bundle: Path | None,
    seconds: float,
    settle_s: float,
    rounds: int,
    resampling: str,
    peers: bool,
    server_options: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure the server of BUNDLE, or of a tiny network if none is named.

    Closed loop: 1, 4 and 16 clients that ask again once they are answered, 500x375 JPEGs, every
    answer checked. LitServe is measured where it is installed (pip install litserve
    python-multipart).
    """
    options = Options(
        seconds=seconds,
        settle_s=settle_s,
        num_rounds=rounds,
        peers=peers,
        server_options=server_options,
    )
    if peers and not find_spec("litserve"):
        click.echo("litserve is not installed: measured without it", err=True)
    with machine_lock(), tempfile.TemporaryDirectory() as folder:
        path = bundle or write_tiny_bundle(Path(folder) / "tiny.bundle", resampling)
        result = bench(Bundle.open(path), options)
    print_json(result) if as_json else click.echo(_table(result))
