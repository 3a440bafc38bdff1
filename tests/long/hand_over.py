"""What the engine's process spends on an image that a front end hands over in shared memory.

    python tests/long/hand_over.py [--images 50000] [--rounds 5]

A front end's process gives 200 crops at a time to the queue of the engine's process, without gRPC
and decoding; the engine is faked, 10,000 images/s in batches of up to 64. Prints the processor
time of the engine's process per image in us, and images/s: with an engine that fetches crops from
where they lie, as a GPU does (the bar: 30 us), and with one that gets them copied into a batch.
"""

import argparse
import asyncio
import os
import socket
import statistics
import sys
import time
from collections.abc import Sequence

import numpy as np

from irv2.bench.rounds import machine, machine_lock
from irv2.runners.base import Runner
from irv2.serve.front_ends.channel import Channel
from irv2.serve.front_ends.remote_batcher import RemotePromises
from irv2.serve.front_ends.remote_requests import RemoteRequests
from irv2.serve.front_ends.segment import Segment
from irv2.serve.pipeline.batcher import Batcher
from irv2.types import FloatArray, UInt8Array
from irv2.v1 import classifier_pb2

IMAGES_PER_S, NUM_AT_ONCE, DEADLINE_S, BAR_US = 10_000, 200, 60.0, 30.0


class Fake(Runner):
    backend, image_size, num_classes, max_batch = "fake", 299, 1000, 64

    def __init__(self, gathers: bool) -> None:
        self.gathers = gathers
        self._logits = np.zeros((self.max_batch, self.num_classes), np.float32)

    def run(self, images: UInt8Array) -> FloatArray:
        time.sleep(len(images) / IMAGES_PER_S)
        return self._logits[: len(images)]

    def run_gathered(self, images: Sequence[UInt8Array]) -> FloatArray:
        time.sleep(len(images) / IMAGES_PER_S)
        return self._logits[: len(images)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with machine_lock():
        print(machine())
        found: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(arguments.rounds):
            for gathers, times in found.items():
                us, rate = asyncio.run(hand_over(arguments.images, gathers))
                times.append(us)
                how = "fetched" if gathers else "copied"
                print(f"{how}: {us:.1f} us per image in the engine's process, {rate:.0f} images/s")
    medians = {gathers: statistics.median(times) for gathers, times in found.items()}
    print(f"medians: fetched {medians[True]:.1f} us, copied {medians[False]:.1f} us")
    return int(medians[True] > BAR_US)


async def hand_over(num: int, gathers: bool) -> tuple[float, float]:
    """Processor time per image in us, and images/s."""
    engine = Fake(gathers)
    shape = (engine.image_size, engine.image_size, 3)
    model = classifier_pb2.Model(classes=["c"] * engine.num_classes, max_batch=engine.max_batch)
    segment, _ = Segment.create(
        model, "id", shape, num_streams=1, num_front_ends=1, max_queue=NUM_AT_ONCE
    )

    def publish() -> None:
        segment.free_at[:] = batcher.free_at()
        segment.num_ending[0] = batcher.num_ending
        batcher.times.write(segment.predicted_s, segment.fastest_s)

    batcher = Batcher(engine, max_batch=engine.max_batch, on_change=publish, ranks=False)
    requests = RemoteRequests(segment, 0, batcher)
    end = await requests.open()
    if (pid := os.fork()) == 0:
        asyncio._set_running_loop(None)  # the parent's
        asyncio.run(front_end(segment, end, num))
        os._exit(0)
    end.close()
    used, started = time.process_time(), time.perf_counter()
    await requests.is_closed.wait()
    used, elapsed = time.process_time() - used, time.perf_counter() - started
    os.waitpid(pid, 0)
    return used / num * 1e6, num / elapsed


async def front_end(segment: Segment, end: socket.socket, num: int) -> None:
    channel = Channel(lambda *answer: promises.receive(*answer), lambda: None)
    promises = RemotePromises(segment, 0, channel)
    await channel.open(end)
    crop = np.zeros((299, 299, 3), np.uint8)
    left = iter(range(num))

    async def client() -> None:
        for _ in left:
            until = asyncio.get_running_loop().time() + DEADLINE_S
            with promises.give(1, until, prepared=False) as places:
                await places.run(crop)

    await asyncio.gather(*(client() for _ in range(NUM_AT_ONCE)))
    channel.close()


if __name__ == "__main__":
    sys.exit(main())
