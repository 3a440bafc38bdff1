"""The batcher under a clock and an engine that the test controls: no thread, no real time."""

import asyncio
import heapq
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from itertools import count
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irv2.errors import EngineError, Expired, NotServing, Overloaded
from irv2.runners.base import Runner
from irv2.serve.pipeline.batch_times import BatchTimes
from irv2.serve.pipeline.batcher import MARGIN, Answer, Batcher

SIDE = 2


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of waiting for it."""

    now = 1000.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        live = [timer for timer in self._scheduled if not timer._cancelled]
        if not self._ready and live:
            self.now = max(self.now, heapq.nsmallest(1, live)[0]._when)
        super()._run_once()


class FakeRunner(Runner):
    """Ledger an image with its own number; fails or gives nonsense where told to."""

    backend, image_size, num_classes, max_batch = "fake", SIDE, 3, 8

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.fails: Callable[[list[int]], bool] = lambda numbers: False

    def run(self, images):
        numbers = [int(image[0, 0, 0]) for image in images]
        self.batches.append(numbers)
        if self.fails(numbers):
            raise EngineError("fake", "was told to fail")
        return np.repeat(np.array(numbers, np.float32)[:, None], 3, axis=1)


class FakeEngine(Executor):
    """Takes `seconds(batch size)` of the virtual clock for each call, one at a time."""

    def __init__(self, seconds: Callable[[int], float]) -> None:
        self.seconds, self.busy, self.starts = seconds, False, []

    def submit(self, run, images):
        assert not self.busy, "two batches at a time"
        self.busy, future, loop = True, Future(), asyncio.get_running_loop()
        self.starts.append(loop.time())

        def done():
            self.busy = False
            try:
                future.set_result(run(images))
            except Exception as error:
                future.set_exception(error)

        loop.call_later(self.seconds(len(images)), done)
        return future


class Bench:
    """A batcher with its fakes; `ask` submits the image of that number."""

    def __init__(
        self,
        seconds: Callable[[int], float] = lambda size: 0.1,
        max_batch=4,
        max_queue=100,
        **options,
    ):
        self.runner, self.engine = FakeRunner(), FakeEngine(seconds)
        self.loop = asyncio.get_running_loop()
        self.batcher = Batcher(
            self.runner, max_batch=max_batch, max_queue=max_queue, engine=self.engine, **options
        )

    async def ask(self, number: int, timeout_s: float = 60.0) -> Answer:
        with self.batcher.admit(1, self.loop.time() + timeout_s) as admission:
            return await admission.run(image(number))

    def ask_later(self, number: int, timeout_s: float = 60.0) -> asyncio.Task[Answer]:
        return asyncio.create_task(self.ask(number, timeout_s))


def image(number: int) -> np.ndarray:
    return np.full((SIDE, SIDE, 3), number, np.uint8)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(scenario)


def test_a_lone_request_starts_at_once():
    async def scenario():
        bench = Bench()
        answer = await bench.ask(7)
        assert answer.logits[0] == 7
        assert (answer.queue_s, answer.inference_s) == (0.0, pytest.approx(0.1))

    run(scenario())


def test_a_batch_fills_while_the_engine_is_busy():
    async def scenario():
        bench = Bench()
        answers = await asyncio.gather(*(bench.ask(number) for number in range(7)))
        assert [answer.logits[0] for answer in answers] == list(range(7))
        assert [len(batch) for batch in bench.runner.batches] == [1, 4, 2]

    run(scenario())


def test_the_most_urgent_go_first_even_when_a_batch_was_prepared():
    async def scenario():
        bench = Bench(max_batch=2)
        tasks = []
        for number, timeout_s in enumerate((10.0, 9.0, 5.0, 1.0, 7.0)):
            tasks.append(bench.ask_later(number, timeout_s))
            await asyncio.sleep(0.01)
        await asyncio.gather(*tasks)
        assert bench.runner.batches == [[0], [3, 2], [4, 1]]

    run(scenario())


def test_a_batch_is_no_larger_than_its_most_urgent_member_can_wait_for():
    async def scenario():
        bench = Bench(seconds=lambda size: 0.1 * size)
        await bench.batcher.warm_up((1, 2, 4))
        first = bench.ask_later(0)
        await asyncio.sleep(0.01)
        urgent = bench.ask_later(1, 0.36)
        others = [bench.ask_later(number) for number in (2, 3)]
        await asyncio.gather(first, urgent, *others)
        assert [len(batch) for batch in bench.runner.batches[3:]] == [1, 2, 1]

    run(scenario())


def test_a_request_that_expires_in_the_queue_never_runs():
    async def scenario():
        bench = Bench(seconds=lambda size: 1.0)
        first = bench.ask_later(0)
        second = bench.ask_later(1, 0.5)
        third = bench.ask_later(2)
        with pytest.raises(Expired):
            await second
        await asyncio.gather(first, third)
        assert bench.runner.batches == [[0], [2]]

    run(scenario())


def test_a_request_whose_deadline_has_passed_is_not_admitted():
    async def scenario():
        with pytest.raises(Expired):
            await Bench().ask(0, timeout_s=0.0)

    run(scenario())


def test_a_cancelled_request_never_runs_even_when_its_batch_is_prepared():
    async def scenario():
        bench = Bench(max_batch=2)
        tasks = [bench.ask_later(number) for number in range(4)]
        await asyncio.sleep(0.05)  # 0 runs, 1 and 2 are staged, 3 is queued
        tasks[1].cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(answers[1], asyncio.CancelledError)
        assert [sorted(batch) for batch in bench.runner.batches] == [[0], [2, 3]]
        assert bench.batcher.num_admitted == 0

    run(scenario())


def test_a_failing_engine_fails_only_that_batch():
    async def scenario():
        bench = Bench(max_batch=2)
        bench.runner.fails = lambda numbers: 1 in numbers
        answers = await asyncio.gather(*map(bench.ask, range(5)), return_exceptions=True)
        failed = [isinstance(answer, EngineError) for answer in answers]
        assert failed == [False, True, True, False, False]

    run(scenario())


def test_logits_that_are_not_finite_are_a_failure():
    async def scenario():
        bench = Bench()
        bench.runner.run = lambda images: np.full((len(images), 3), np.nan, np.float32)
        with pytest.raises(EngineError):
            await bench.ask(0)

    run(scenario())


def test_what_cannot_be_done_in_time_is_refused_with_the_time_to_come_back():
    async def scenario():
        bench = Bench(seconds=lambda size: 1.0, max_batch=1)
        await bench.batcher.warm_up((1,))
        waiting = [bench.ask_later(number, timeout_s=4.0) for number in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match=r"4 s to the answer, 4\.5 s to the dead") as refused:
            await bench.ask(3, timeout_s=4.5)  # the fourth in a row is answered after 4 s
        assert refused.value.retry_after_s == pytest.approx(4 * MARGIN - 4.5)
        assert refused.value.reason == "deadline"
        assert (await bench.ask(4, timeout_s=4.01 * MARGIN)).logits[0] == 4
        await asyncio.gather(*waiting)

    run(scenario())


@pytest.mark.parametrize(
    ("num_images", "timeout_s", "is_refused"),
    [(4, 0.1, False), (5, 0.9, True), (5, 1.1, False), (12, 2.9, True), (12, 3.1, False)],
)
def test_an_idle_server_refuses_more_than_a_batch_only_where_it_could_never_be_in_time(
    num_images, timeout_s, is_refused
):
    async def scenario():
        bench = Bench(seconds=lambda size: 1.0)
        await bench.batcher.warm_up((1, 4))
        bench.engine.seconds = lambda size: 100.0  # a machine that slept is not believed
        await bench.batcher.warm_up((4,))
        deadline = bench.loop.time() + timeout_s
        if is_refused:
            with pytest.raises(Overloaded) as refused:
                bench.batcher.check(num_images, deadline)
            assert refused.value.reason == "deadline"
        else:
            bench.batcher.check(num_images, deadline)

    run(scenario())


def test_those_with_time_to_spare_do_not_shut_out_the_urgent():
    async def scenario():
        bench = Bench(seconds=lambda size: 0.05 + 0.05 * size)
        await bench.batcher.warm_up((1, 4))
        patient = [bench.ask_later(number) for number in range(64)]  # 4 s of work
        await asyncio.sleep(0.01)
        assert bench.batcher.predicted_wait_s() > 3.5
        assert (await bench.ask(99, timeout_s=0.6)).queue_s < 0.1
        assert bench.runner.batches[3][0] == 99, "it runs next, behind the two of the warm-up"
        assert len(await asyncio.gather(*patient)) == 64

    run(scenario())


def test_an_urgent_request_is_refused_where_one_with_a_promise_would_be_late():
    async def scenario():
        bench = Bench(seconds=lambda size: 1.0, max_batch=1)
        await bench.batcher.warm_up((1,))
        waiting = [bench.ask_later(number, timeout_s=3 * MARGIN) for number in range(3)]
        await asyncio.sleep(0)
        expected = r"a request admitted earlier would be 1\.2 s late"
        with pytest.raises(Overloaded, match=expected) as refused:  # its own answer: after 2 s
            await bench.ask(3, timeout_s=3.0)
        assert refused.value.retry_after_s == pytest.approx(4 * MARGIN - 3 * MARGIN)
        await asyncio.gather(*waiting)

    run(scenario())


@pytest.mark.parametrize(("last_timeout_s", "is_refused"), [(3.0, True), (3.7, False)])
def test_only_who_is_pushed_into_a_later_batch_can_be_late(last_timeout_s, is_refused):
    async def scenario():
        bench = Bench(seconds=lambda size: 1.0)
        await bench.batcher.warm_up((1, 4))
        running = bench.ask_later(0)
        await asyncio.sleep(0)
        timeouts_s = (2.9, 2.9, 2.9, last_timeout_s)  # done after 2 s; the last now after 3 s
        waiting = [bench.ask_later(1 + i, timeout_s) for i, timeout_s in enumerate(timeouts_s)]
        await asyncio.sleep(0)
        urgent = bench.ask_later(9, timeout_s=2.5)
        await asyncio.wait([urgent])
        assert isinstance(urgent.exception(), Overloaded) == is_refused
        await asyncio.gather(running, *waiting)

    run(scenario())


def test_cancelled_members_of_the_running_batch_are_nobody_ahead():
    async def scenario():
        bench = Bench(seconds=lambda size: 1.0)
        await bench.batcher.warm_up((1, 4))
        tasks = [bench.ask_later(number) for number in range(9)]
        await asyncio.sleep(1.5)  # 0 is done, four run, four wait
        for task in tasks[1:4]:
            task.cancel()
        await asyncio.sleep(0)
        assert bench.batcher.num_admitted == 5
        assert bench.batcher.predicted_wait_s() == pytest.approx(0.5 + 1.0 + 1.0)
        tasks[5].cancel()
        await asyncio.sleep(0)
        assert bench.batcher.predicted_wait_s() == pytest.approx(0.5 + 1.0)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert bench.batcher._deadlines == []

    run(scenario())


def test_images_that_are_still_being_prepared_count_in_the_predicted_wait():
    async def scenario():
        bench = Bench(prepare_s=lambda num_images: 0.5 * num_images)
        await bench.batcher.warm_up((1, 4))  # 0.1 s each
        deadline = bench.loop.time() + 60.0
        with bench.batcher.admit(3, deadline) as admission:
            assert bench.batcher.predicted_wait_s() == pytest.approx(4 * 0.5 + 0.1)
            with pytest.raises(Overloaded):
                bench.batcher.admit(1, bench.loop.time() + 2.1)
            await admission.run(image(0))
            assert bench.batcher.predicted_wait_s() == pytest.approx(3 * 0.5 + 0.1)
        assert bench.batcher.predicted_wait_s() == pytest.approx(0.5 + 0.1)

    run(scenario())


def test_prepared_images_wait_for_no_preparation_of_their_own():
    async def scenario():
        bench = Bench(prepare_s=lambda num_images: 0.5 * num_images)
        await bench.batcher.warm_up((1, 4))
        with bench.batcher.admit(3, bench.loop.time() + 60.0, prepared=True) as admission:
            await admission.run(image(0))
            assert bench.batcher.predicted_wait_s() == pytest.approx(0.5 + 0.1)
            soon = bench.loop.time() + 0.4
            with pytest.raises(Overloaded):
                bench.batcher.admit(1, soon)
            with bench.batcher.admit(1, soon, prepared=True) as admission:
                await admission.run(image(1))

    run(scenario())


def test_no_more_images_are_admitted_than_the_queue_may_hold():
    async def scenario():
        bench = Bench(max_queue=2)
        waiting = [bench.ask_later(number) for number in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="at most 2"):
            await bench.ask(2)
        await asyncio.gather(*waiting)
        await bench.ask(3)

    run(scenario())


def test_one_slow_batch_is_not_believed_for_ever():
    async def scenario():
        slow = iter([100.0])
        bench = Bench(seconds=lambda size: next(slow, 0.1))
        await bench.ask(0, timeout_s=200.0)
        answer = await bench.ask(1, timeout_s=1.0)  # by the average it would take 100 s
        assert answer.logits[0] == 1

    run(scenario())


def test_an_idle_engine_waits_for_company_as_long_as_it_is_told():
    async def scenario():
        bench = Bench(max_queue_delay_ms=50)
        first = bench.ask_later(0)
        await asyncio.sleep(0.03)
        second = bench.ask_later(1)
        answers = await asyncio.gather(first, second)
        assert bench.runner.batches == [[0, 1]]
        assert answers[0].queue_s == pytest.approx(0.05)

    run(scenario())


def test_places_not_taken_are_free_again():
    async def scenario():
        batcher = Bench().batcher
        with batcher.admit(64, asyncio.get_running_loop().time() + 1.0):
            assert batcher.num_admitted == 64
        assert batcher.num_admitted == 0

    run(scenario())


def test_closing_answers_everything_admitted_and_refuses_the_rest():
    async def scenario():
        bench = Bench(max_batch=1, max_queue_delay_ms=50)
        waiting = [bench.ask_later(number) for number in range(3)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(bench.batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(NotServing):
            await bench.ask(3)
        await closing
        assert [task.result().logits[0] for task in waiting] == [0, 1, 2]

    run(scenario())


def test_batch_times_are_interpolated_and_extrapolated():
    times = BatchTimes()
    assert times.predict(5) == 0.0
    times.learn(2, 1.0)
    times.learn(4, 2.0)
    assert [times.predict(size) for size in (1, 3, 8)] == [1.0, 1.5, 4.0]
    times.learn(4, 3.0)
    assert times.predict(4) == pytest.approx(2.2)


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """One request: when it comes, what it holds, how long each image is prepared."""
    return {
        "gap_s": draw(st.floats(0, 0.5)),  # after the one before
        "timeout_s": draw(st.floats(0.01, 3.0)),
        "cancel_s": draw(st.none() | st.floats(0, 1.0)),
        "prepare_s": draw(st.lists(st.just(0.0) | st.floats(0, 0.4), min_size=1, max_size=4)),
    }


@settings(max_examples=100, deadline=None)
@given(
    arrivals=st.lists(requests(), max_size=25),
    max_batch=st.integers(1, 5),
    max_queue=st.integers(1, 12),
    delay_ms=st.sampled_from([0.0, 0.0, 80.0]),
    per_image_s=st.floats(0.001, 0.6),
    failing=st.sets(st.integers(0, 99)),
)
def test_every_request_gets_exactly_one_answer_its_own(
    arrivals, max_batch, max_queue, delay_ms, per_image_s, failing
):
    """Over random arrivals, deadlines, cancellations and failures of the engine.

    And where one image is refused, so are more of them, and at an earlier deadline: a request may
    be refused before it is read.
    """

    def batch_s(size):
        return per_image_s * (1 + size) / 2

    async def scenario():
        bench = Bench(batch_s, max_batch, max_queue, max_queue_delay_ms=delay_ms)
        bench.runner.fails = lambda numbers: bool(failing & set(numbers))
        tasks, deadlines, given_up_at = [], {}, {}
        numbers = count()

        async def ask(images, deadline):
            async def one(number, prepare_s):
                await asyncio.sleep(prepare_s)
                return await admission.run(image(number))

            if is_refused(bench.batcher, 1, deadline):
                earlier = (bench.loop.time() + deadline) / 2
                assert is_refused(bench.batcher, len(images), deadline)
                assert is_refused(bench.batcher, len(images), earlier)
            try:
                async with asyncio.timeout_at(deadline):
                    with bench.batcher.admit(len(images), deadline) as admission:
                        assert bench.batcher.num_admitted <= max(max_queue, len(images))
                        async with asyncio.TaskGroup() as group:
                            works = [group.create_task(one(*each)) for each in images]
                        return [work.result() for work in works]
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from errors
            finally:  # before the deadline or by it: nothing of it may start any more
                given_up_at.update(dict.fromkeys((n for n, _ in images), bench.loop.time()))

        for arrival in arrivals:
            await asyncio.sleep(arrival["gap_s"])
            images = [(next(numbers), seconds) for seconds in arrival["prepare_s"]]
            deadline = bench.loop.time() + arrival["timeout_s"]
            deadlines.update(dict.fromkeys((number for number, _ in images), deadline))
            task = asyncio.create_task(ask(images, deadline))
            tasks.append((images, task))
            if arrival["cancel_s"] is not None:
                bench.loop.call_later(arrival["cancel_s"], task.cancel)
        await asyncio.gather(*(task for _, task in tasks), return_exceptions=True)
        await bench.batcher.close()

        starts = list(zip(bench.engine.starts, bench.runner.batches, strict=True))
        ran = [number for _, batch in starts for number in batch]
        assert len(ran) == len(set(ran)), "an image ran twice"
        for started_at, batch in starts:
            assert 0 < len(batch) <= max_batch
            assert all(started_at < deadlines[number] for number in batch), "an expired one ran"
            assert all(started_at <= given_up_at[number] for number in batch), "a cancelled one ran"
        for images, task in tasks:
            if task.cancelled():
                continue
            if error := task.exception():
                assert isinstance(error, EngineError | Expired | Overloaded | TimeoutError)
                continue
            for (number, _), answer in zip(images, task.result(), strict=True):
                assert answer.logits[0] == number
                # Idle means at once: what queued longer than the delay waited for the engine.
                started_at = next(at for at, batch in starts if number in batch)
                since = started_at - answer.queue_s + delay_ms / 1e3
                assert is_busy(starts, since, started_at)
        assert bench.batcher.num_admitted == 0
        assert bench.batcher._deadlines == [], "nobody waits, yet someone is counted as ahead"

    def is_busy(starts, since, until):
        """Whether batches follow one another without a gap from `since` to `until`."""
        busy_s = sum(
            max(0.0, min(until, start + batch_s(len(batch))) - max(since, start))
            for start, batch in starts
            if start < until
        )
        return busy_s >= until - since - 1e-6

    def is_refused(batcher, num_images, deadline):
        try:
            batcher.check(num_images, deadline)
        except (Expired, Overloaded):
            return True
        return False

    run(scenario())


@pytest.mark.parametrize("of_capacity", [3.0, 10.0])
@pytest.mark.parametrize("timeout_s", [(1.5,), (4.0,), (1.5, 4.0, 20.0)])
def test_far_beyond_its_capacity_the_engine_does_useful_work_only(of_capacity, timeout_s):
    """What is refused is refused so that what is admitted comes in time, in full batches."""
    rng = np.random.default_rng(0)
    capacity = 8 / 0.86  # images/s in full batches
    outcomes = Counter()

    def batch_s(size):  # as the full network's on two cores: a part for each batch, 5 % noise
        return (0.06 + 0.1 * size) * float(rng.lognormal(0.0, 0.05))

    async def scenario():
        bench = Bench(batch_s, max_batch=8, max_queue=256)
        await bench.batcher.warm_up((1, 2, 4, 8))

        async def ask():
            deadline = bench.loop.time() + float(rng.choice(timeout_s))
            try:
                async with asyncio.timeout_at(deadline):
                    with bench.batcher.admit(1, deadline) as admission:
                        await admission.run(image(0))
                outcomes["answered"] += 1
            except Overloaded:
                outcomes["refused"] += 1
            except (Expired, TimeoutError):
                outcomes["expired"] += 1

        started_at = bench.loop.time()
        async with asyncio.TaskGroup() as group:
            for _ in range(int(of_capacity * capacity * 30)):
                await asyncio.sleep(rng.exponential(1 / (of_capacity * capacity)))
                group.create_task(ask())
        goodput = outcomes["answered"] / (bench.loop.time() - started_at)
        assert goodput >= 0.9 * capacity
        assert outcomes["expired"] <= 0.01 * outcomes["answered"]
        assert outcomes["refused"] > 0

    run(scenario())
