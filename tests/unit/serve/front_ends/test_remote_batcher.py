"""Both ends of a queue in shared memory, in one process: real sockets, an engine by hand."""

import asyncio
import os
from concurrent.futures import Executor, Future

import numpy as np
import pytest
from serving_bench import SIDE, FakeRunner, image

from irv2.errors import EngineError, Expired, Overloaded
from irv2.serve.front_ends.channel import Channel
from irv2.serve.front_ends.remote_batcher import RemoteBatcher, RemotePromises
from irv2.serve.front_ends.remote_requests import RemoteRequests
from irv2.serve.front_ends.segment import FREE, Segment
from irv2.serve.pipeline.admission import Admission, LocalPromises
from irv2.serve.pipeline.batcher import Batcher
from irv2.v1 import classifier_pb2

MAX_QUEUE = 8


class HeldEngine(Executor):
    """Runs a batch when it is told to."""

    def __init__(self) -> None:
        self.held = []

    def submit(self, run, images):
        future = Future()
        self.held.append((future, run, images))
        return future

    def finish(self) -> None:
        future, run, images = self.held.pop(0)
        try:
            future.set_result(run(images))
        except Exception as error:
            future.set_exception(error)


class FrontEnd:
    """What a front end has of the queue."""

    def __init__(self, segment: Segment, number: int) -> None:
        self.channel = Channel(lambda *record: self.promises.receive(*record), lambda: None)
        self.promises = RemotePromises(segment, number, self.channel)
        self.batcher = RemoteBatcher(segment, self.channel)
        self.admission = Admission(
            self.batcher, self.promises, MAX_QUEUE, lambda num_images: 0.01 * num_images
        )

    def ask(self, number: int, timeout_s: float = 60.0) -> asyncio.Task:
        async def answer():
            loop = asyncio.get_running_loop()
            with self.admission.admit(1, loop.time() + timeout_s) as places:
                return await places.run(image(number))

        return asyncio.create_task(answer())


class Bench:
    """An engine's process and two front ends, all in this process."""

    def __init__(self, max_batch: int = 2) -> None:
        model = classifier_pb2.Model(classes=["a", "b", "c"], max_batch=max_batch)
        self.segment, self.descriptor = Segment.create(
            model, "x.onnx", (SIDE, SIDE, 3), num_streams=1, num_front_ends=2, max_queue=MAX_QUEUE
        )
        self.ends: list[Channel] = []
        self.runner, self.engine = FakeRunner(), HeldEngine()
        self.batcher = Batcher(
            self.runner,
            max_batch=max_batch,
            engine=self.engine,
            on_change=self.publish,
            ranks=False,
        )

    def publish(self) -> None:
        self.segment.free_at[:] = self.batcher.free_at()
        self.segment.num_ending[0] = self.batcher.num_ending
        self.batcher.times.write(self.segment.predicted_s, self.segment.fastest_s)

    async def join(self, number: int) -> tuple[FrontEnd, RemoteRequests]:
        requests = RemoteRequests(self.segment, number, self.batcher)
        # Another mapping of the same memory, as in another process.
        front_end = FrontEnd(Segment(self.segment.layout, self.descriptor), number)
        await front_end.channel.open(await requests.open())
        self.ends += [front_end.channel, requests._channel]
        return front_end, requests

    async def close(self) -> None:
        for end in self.ends:
            end.close()
        os.close(self.descriptor)
        await asyncio.sleep(0)  # until they are closed

    async def until(self, is_so) -> None:
        async with asyncio.timeout(10):
            while not is_so():
                await asyncio.sleep(0.001)


def run(scenario) -> None:
    async def whole():
        bench, faults = Bench(), []
        asyncio.get_running_loop().set_exception_handler(lambda loop, fault: faults.append(fault))
        try:
            await scenario(bench)
        finally:
            await bench.close()
        assert not faults

    asyncio.run(whole())


def test_images_of_two_front_ends_share_batches_and_each_gets_its_own_answer():
    async def scenario(bench):
        one, _ = await bench.join(0)
        two, _ = await bench.join(1)
        asked = [one.ask(1)]
        await bench.until(lambda: bench.engine.held)
        asked += [two.ask(2), one.ask(3)]
        await bench.until(lambda: len(bench.batcher._queue) == 2 or bench.batcher._staged)
        bench.engine.finish()
        await bench.until(lambda: bench.engine.held)
        bench.engine.finish()
        answers = await asyncio.gather(*asked)
        assert [answer.logits[0] for answer in answers] == [1, 2, 3]
        assert [len(batch) for batch in bench.runner.batches] == [1, 2]
        assert answers[0].probabilities == pytest.approx([1 / 3] * 3)
        assert all(answer.inference_s > 0 for answer in answers)
        assert (bench.segment.states == FREE).all()
        assert one.promises.all_kept.is_set()

    run(scenario)


def test_an_engine_that_gathers_images_gets_them_where_front_ends_have_put_them():
    class Gathering(FakeRunner):
        gathers, given = True, ()

        def run_gathered(self, images):
            self.given = [*self.given, *images]
            return super().run_gathered(images)

    async def scenario(bench):
        bench.batcher._runner = bench.runner = Gathering()
        one, _ = await bench.join(0)
        two, _ = await bench.join(1)
        asked = [front_end.ask(n) for n, front_end in enumerate((one, two, one, two))]
        while not all(each.done() for each in asked):
            await bench.until(lambda: bench.engine.held)
            bench.engine.finish()
            await asyncio.sleep(0.01)
        assert [(await each).logits[0] for each in asked] == [0, 1, 2, 3]
        assert all(np.shares_memory(image, bench.segment.images) for image in bench.runner.given)
        assert len(bench.runner.given) == 4

    run(scenario)


def test_the_limit_and_the_prediction_are_those_of_one_process():
    async def scenario(bench):
        local = Admission(
            bench.batcher, LocalPromises(bench.batcher), MAX_QUEUE, lambda num_images: 0.0
        )
        one, _ = await bench.join(0)
        two, _ = await bench.join(1)
        for seconds, size in ((1.0, 1), (1.5, 2)):
            bench.batcher.times.learn(size, seconds)
        bench.publish()
        assert two.admission.predicted_wait_s() == pytest.approx(
            local.predicted_wait_s() + 0.01, abs=1e-3
        )
        places = [front_end.admission.admit(4, 1e9) for front_end in (one, two)]
        for each in (one, two):
            assert each.admission.num_admitted == MAX_QUEUE
            with pytest.raises(Overloaded, match="8 images are waiting, at most 8") as refused:
                each.admission.admit(1, 1e9)
            assert refused.value.reason == "queue_full"
        for each in places:
            each.__exit__()
        now = asyncio.get_running_loop().time()
        late = pytest.raises(Overloaded, match=r"to the answer, \S+ s to the deadline")
        with one.admission.admit(4, now + 3.9), late:
            two.admission.check(1, now + 4)  # in the third batch, after those of the other
        two.admission.check(1, now + 4)
        assert one.admission.num_admitted == 0

    run(scenario)


class Overtaken(RemotePromises):
    """Another front end takes the last places between the check and the promise."""

    overtake = staticmethod(lambda: None)

    def give(self, num_images, deadline, *, prepared):
        self.overtake()
        return super().give(num_images, deadline, prepared=prepared)


def test_two_front_ends_that_admit_at_once_never_exceed_the_limit():
    async def scenario(bench):
        one, _ = await bench.join(0)
        two, _ = await bench.join(1)
        promises = Overtaken(bench.segment, 0, one.channel)
        promises.overtake = lambda: two.admission.admit(MAX_QUEUE, 1e9)
        admission = Admission(one.batcher, promises, MAX_QUEUE, lambda num_images: 0.0)
        with pytest.raises(Overloaded) as refused:
            admission.admit(1, 1e9)
        assert refused.value.reason == "queue_full"
        assert admission.num_admitted == MAX_QUEUE
        assert promises.all_kept.is_set()

    run(scenario)


def test_what_a_front_end_that_hangs_has_promised_counts_up_to_its_deadline():
    async def scenario(bench):
        one, _ = await bench.join(0)
        two, _ = await bench.join(1)
        one.admission.admit(MAX_QUEUE, asyncio.get_running_loop().time() + 0.05)
        assert two.admission.num_admitted == MAX_QUEUE
        await bench.until(lambda: two.admission.num_admitted == 0)

    run(scenario)


@pytest.mark.parametrize("has_started", [False, True])
def test_a_request_that_is_given_up_frees_its_place(has_started):
    async def scenario(bench):
        one, _ = await bench.join(0)
        first = one.ask(1)
        await bench.until(lambda: bench.engine.held)
        second = one.ask(2)
        await bench.until(lambda: bench.batcher._queue)
        given_up, kept = (first, second) if has_started else (second, first)
        given_up.cancel()
        await bench.until(lambda: (bench.segment.states != FREE).sum() == 1)
        third = one.ask(3)  # in the place that is free again, while the engine runs
        await bench.until(lambda: bench.batcher._staged if has_started else bench.batcher._queue)
        bench.engine.finish()
        await bench.until(lambda: bench.engine.held)
        bench.engine.finish()
        assert (await kept).logits[0] == (2 if has_started else 1)
        assert (await third).logits[0] == 3, "not what the request before had asked"
        assert bench.runner.batches == ([[1], [2, 3]] if has_started else [[1], [3]])

    run(scenario)


def test_a_failed_batch_and_a_passed_deadline_are_told():
    async def scenario(bench):
        one, _ = await bench.join(0)
        bench.runner.fails = lambda numbers: True
        failing = one.ask(1)
        await bench.until(lambda: bench.engine.held)
        late = one.ask(2, timeout_s=0.02)
        await bench.until(lambda: bench.batcher._queue)
        await asyncio.sleep(0.03)
        bench.engine.finish()
        with pytest.raises(EngineError):
            await failing
        with pytest.raises(Expired):
            await late
        assert (bench.segment.states == FREE).all()

    run(scenario)


def test_a_front_end_that_ends_at_any_point_leaves_nothing_behind_and_no_other_suffers():
    async def scenario(bench):
        one, requests = await bench.join(0)
        two, _ = await bench.join(1)
        asked = [one.ask(1)]  # runs
        await bench.until(lambda: bench.engine.held)
        asked += [one.ask(2), two.ask(3), one.ask(4)]  # staged and queued
        await bench.until(lambda: bench.batcher._staged and bench.batcher._queue)
        one.admission.admit(1, 1e9)  # being decoded
        one.channel._transport.abort()  # what the system does to the socket of a killed process
        await bench.until(requests.is_closed.is_set)
        assert (bench.segment.states[0] == FREE).all()
        assert two.admission.num_admitted == 1
        another, _ = await bench.join(0)
        asked.append(another.ask(5))  # in a place of which the running batch was asked
        await bench.until(lambda: bench.batcher._queue)
        bench.engine.finish()
        await bench.until(lambda: bench.engine.held)
        bench.engine.finish()
        assert (await asked[2]).logits[0] == 3
        assert (await asked[4]).logits[0] == 5
        assert bench.runner.batches == [[1], [3, 5]]
        for each in asked:
            each.cancel()

    run(scenario)


def test_the_memory_of_a_large_queue_is_taken_only_where_it_is_used():
    model = classifier_pb2.Model(classes=["a"] * 1000, max_batch=64)
    segment, descriptor = Segment.create(
        model, "x.onnx", (299, 299, 3), num_streams=1, num_front_ends=8, max_queue=256
    )
    os.close(descriptor)
    assert segment.images.nbytes > 1e9
    assert segment.description == model
    before = _shared_bytes()
    segment.images[3, 5] = np.ones((299, 299, 3), np.uint8)
    assert _shared_bytes() - before < 2e6


def _shared_bytes() -> int:
    with open("/proc/self/statm") as statm:  # noqa: PTH123
        return int(statm.read().split()[2]) * 4096
