"""What a shadow costs: capacity with and without one, and requests that expire beside it.

    python tests/long/shadow_under_load.py BUNDLE SHADOW [--clients 4] [--rounds 5] [--seconds 20]

Two servers of BUNDLE, one with SHADOW on 5 % of the pictures, take turns in answering a closed
loop; then the one with the shadow gets 0.9 of its capacity at random times, each request with two
seconds. No picture comes twice, or the shadow would leave it out; `--pictures` is the number for
each round, and "repeated" says whether it was too small. Prints one JSON object; exit status 1 if
the shadow costs 6 % of the capacity or more, or a request expired.
"""

import argparse
import asyncio
import json
import statistics
import sys
from pathlib import Path

import numpy as np
import simplejpeg

from irv2.commands.shadow import read_report
from irv2.serve.bench.clients import ClosedLoop, GrpcTarget, open_loop
from irv2.serve.bench.site import Served, make_pictures, our_server, served

SHARE, MAX_COST, LOAD, DEADLINE_S = "5%", 0.06, 0.9, 2.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("shadow", type=Path)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--pictures", type=int, default=4000)
    arguments = parser.parse_args()
    shadowed = ("--http", "127.0.0.1:0", "--shadow", str(arguments.shadow), "--shadow-share", SHARE)
    with (
        served(our_server(arguments.bundle)) as alone,
        served(our_server(arguments.bundle, *shadowed)) as beside,
    ):
        rates: dict[str, list[float]] = {"alone": [], "beside": []}
        for number in range(arguments.rounds):
            pictures = distinct_pictures(number, arguments.pictures)
            for name, process in (("alone", alone), ("beside", beside)):
                rates[name].append(capacity(process, pictures, arguments))
        ratios = [with_it / without for without, with_it in zip(*rates.values(), strict=True)]
        after_rounds = read_report(beside.http)
        pictures = distinct_pictures(arguments.rounds, arguments.pictures)
        outcomes = offer(beside, pictures, LOAD * statistics.median(rates["beside"]), arguments)
        result = {
            "images_per_s": {
                name: [round(rate, 1) for rate in each] for name, each in rates.items()
            },
            "ratios": [round(ratio, 3) for ratio in ratios],
            "cost": round(1 - statistics.median(ratios), 3),
            "compared": after_rounds.compared,
            "dropped": after_rounds.dropped,
            "repeated": after_rounds.repeated,
            "compared_under_load": read_report(beside.http).compared - after_rounds.compared,
            "outcomes": outcomes,
        }
    print(json.dumps(result, indent=2))
    return int(result["cost"] >= MAX_COST or outcomes.get("DEADLINE_EXCEEDED", 0) > 0)


def distinct_pictures(number: int, num: int) -> list[bytes]:
    """Set `number` of `num` JPEGs of 40 kB: shifts of the benchmarks' pictures, none twice."""
    bases = [simplejpeg.decode_jpeg(picture) for picture in make_pictures()]

    def picture(index: int) -> bytes:
        down, right = divmod(index // len(bases), 60)
        shifted = np.roll(bases[index % len(bases)], (8 * down, 8 * right), axis=(0, 1))
        return simplejpeg.encode_jpeg(shifted)

    return [picture(index) for index in range(number * num, (number + 1) * num)]


def capacity(process: Served, pictures: list[bytes], arguments: argparse.Namespace) -> float:
    """Answers per second to clients with pictures of their own, each asking when answered."""

    async def measure() -> float:
        num = arguments.clients
        targets = [GrpcTarget(process.address, pictures[first::num]) for first in range(num)]
        loops = [ClosedLoop(target, 1, process.cpu_s) for target in targets]
        windows = await asyncio.gather(*(each.window(arguments.seconds, 1.0) for each in loops))
        return sum(window.rate for window in windows)

    return asyncio.run(measure())


def offer(
    process: Served, pictures: list[bytes], rate: float, arguments: argparse.Namespace
) -> dict[str, int]:
    """Outcomes of requests at random times, `rate` per second on average."""
    num_requests = round(rate * arguments.seconds)
    due_s = np.random.default_rng(0).exponential(1 / rate, num_requests).cumsum().tolist()
    calls = asyncio.run(open_loop(GrpcTarget(process.address, pictures), due_s, DEADLINE_S))
    outcomes = [call.outcome for call in calls]
    return {each: outcomes.count(each) for each in sorted(set(outcomes))}


if __name__ == "__main__":
    sys.exit(main())
