"""The batches that are formed, under a clock and an engine that the test controls."""

import asyncio
from itertools import count
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_bench import Bench, image, run

from irv2.errors import EngineError, Expired, Overloaded


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
        await bench.warm_up((1, 2, 4))
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


def test_a_cancelled_request_never_runs_even_when_its_batch_is_prepared():
    async def scenario():
        bench = Bench(max_batch=2)
        tasks = [bench.ask_later(number) for number in range(4)]
        await asyncio.sleep(0.05)  # 0 runs, 1 and 2 are staged, 3 is queued
        tasks[1].cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(answers[1], asyncio.CancelledError)
        assert [sorted(batch) for batch in bench.runner.batches] == [[0], [2, 3]]
        assert bench.admission.num_admitted == 0

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


def on_two_streams(**options) -> Bench:
    """A batch of n takes 0.1 s and 0.1 s more for each image."""
    return Bench(lambda size: 0.1 + 0.1 * size, num_streams=2, **options)


def test_two_batches_run_at_once_and_the_most_urgent_go_first():
    async def scenario():
        bench = on_two_streams(max_batch=2)
        tasks = []
        for number, timeout_s in enumerate((10.0, 9.0, 5.0, 1.0, 7.0, 6.0, 8.0, 20.0)):
            tasks.append(bench.ask_later(number, timeout_s))
            await asyncio.sleep(0.01)
        assert bench.batcher.num_running == 2
        answers = await asyncio.gather(*tasks)
        assert [answer.logits[0] for answer in answers] == list(range(8))
        assert bench.runner.batches == [[0], [1], [3, 2], [5, 4], [6], [7]]
        assert bench.batcher.num_running == 0
        assert not bench.engine.was_overwritten

    run(scenario())


@pytest.mark.parametrize(
    ("apart_s", "num_waiting", "expected"),
    [
        (0.0, 1, [1]),
        (0.0, 2, [1, 1]),
        (0.0, 8, [4, 4]),  # after 0.5 s, not after 0.9 s
        (0.0, 12, [6, 6]),
        (0.0, 40, [8, 8, 8, 8, 8 // 2, 8 // 2]),  # under load they are full, to the last ones
        (0.09, 4, [2, 2]),
        (0.19, 2, [2]),  # apart, the second would be later than beside the first
    ],
)
def test_streams_that_are_free_at_about_the_same_time_share_what_waits(
    apart_s, num_waiting, expected
):
    async def scenario():
        bench = on_two_streams(max_batch=8)
        await bench.warm_up((1, 2, 4, 8))
        bench.runner.batches.clear()
        running = [bench.ask_later(100)]
        await asyncio.sleep(apart_s)
        running.append(bench.ask_later(101))
        waiting = [bench.ask_later(number) for number in range(num_waiting)]
        await asyncio.gather(*running, *waiting)
        assert [len(batch) for batch in bench.runner.batches[2:]] == expected

    run(scenario())


def test_a_stream_waits_for_company_while_another_one_runs_and_shares_none_of_it():
    async def scenario():
        bench = on_two_streams(max_batch=4, max_queue_delay_ms=50)
        await bench.warm_up((1, 2, 4))
        bench.runner.batches.clear()
        tasks = [bench.ask_later(number) for number in range(4)]
        await asyncio.sleep(0.01)
        assert bench.batcher.num_running == 1, "a full batch starts at once"
        tasks.append(bench.ask_later(4))
        await asyncio.sleep(0.03)
        tasks.append(bench.ask_later(5))
        answers = await asyncio.gather(*tasks)
        assert bench.runner.batches == [[4, 5], [0, 1, 2, 3]]
        assert answers[4].queue_s == pytest.approx(0.05)

    run(scenario())


def test_a_failure_on_one_stream_is_none_on_the_others():
    async def scenario():
        failures = []
        bench = on_two_streams(max_batch=1, on_failure=lambda: failures.append(1))
        bench.runner.fails = lambda numbers: numbers[0] % 2 == 0
        answers = await asyncio.gather(*map(bench.ask, range(6)), return_exceptions=True)
        assert [isinstance(answer, EngineError) for answer in answers] == [True, False] * 3
        assert len(failures) == 3

    run(scenario())


def test_closing_waits_for_all_batches_that_run():
    async def scenario():
        bench = on_two_streams(max_batch=1)
        tasks = [bench.ask_later(number) for number in range(2)]
        await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()  # their callers are gone, but the engine still reads their images
        await asyncio.wait(tasks)
        assert bench.batcher.num_running == 2
        await bench.admission.close()
        assert sorted(bench.runner.batches) == [[0], [1]]
        assert bench.batcher.num_running == 0

    run(scenario())


def test_a_batch_apart_runs_on_every_stream_at_once():
    async def scenario():
        bench = on_two_streams()
        logits = await bench.batcher.run_apart(np.stack([image(3), image(4)]))
        assert [each[:, 0].tolist() for each in logits] == [[3, 4], [3, 4]]
        assert bench.engine.starts == [bench.loop.time() - 0.3] * 2
        assert bench.batcher.times.predict(2) == pytest.approx(0.3)

    run(scenario())


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
    num_streams=st.sampled_from([1, 1, 2, 4]),
)
def test_every_request_gets_exactly_one_answer_its_own(
    arrivals, max_batch, max_queue, delay_ms, per_image_s, failing, num_streams
):
    """Over random arrivals, deadlines, cancellations and failures of the engine.

    And where one image is refused, so are more of them, and at an earlier deadline: a request may
    be refused before it is read.
    """

    def batch_s(size):
        return per_image_s * (1 + size) / 2

    async def scenario():
        bench = Bench(
            batch_s,
            max_batch,
            max_queue,
            num_streams=num_streams,
            max_queue_delay_ms=delay_ms,
        )
        bench.runner.fails = lambda numbers: bool(failing & set(numbers))
        tasks, deadlines, given_up_at = [], {}, {}
        numbers = count()

        async def ask(images, deadline):
            async def one(number, prepare_s):
                await asyncio.sleep(prepare_s)
                return await places.run(image(number))

            if is_refused(bench.admission, 1, deadline):
                earlier = (bench.loop.time() + deadline) / 2
                assert is_refused(bench.admission, len(images), deadline)
                assert is_refused(bench.admission, len(images), earlier)
            try:
                async with asyncio.timeout_at(deadline):
                    with bench.admission.admit(len(images), deadline) as places:
                        assert bench.admission.num_admitted <= max(max_queue, len(images))
                        async with asyncio.TaskGroup() as group:
                            works = [group.create_task(one(*each)) for each in images]
                        return [work.result() for work in works]
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from errors
            finally:  # by the deadline at the latest: none of its images may start now
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
        await bench.admission.close()

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
                # Idle means at once: what queued longer than the delay waited for a stream.
                started_at = next(at for at, batch in starts if number in batch)
                since = started_at - answer.queue_s + delay_ms / 1e3
                assert are_all_busy(starts, since, started_at)
        assert bench.admission.num_admitted == 0
        assert not bench.engine.was_overwritten
        batch_alone_s = bench.batcher.times.predict(max_batch)
        assert bench.admission.predicted_wait_s(max_batch) == batch_alone_s, "none is ahead"

    def are_all_busy(starts, since, until):
        """Whether batches follow one another on all streams without a gap in that time."""
        busy_s = sum(
            max(0.0, min(until, start + batch_s(len(batch))) - max(since, start))
            for start, batch in starts
            if start < until
        )
        return busy_s >= num_streams * (until - since) - 1e-6

    def is_refused(admission, num_images, deadline):
        try:
            admission.check(num_images, deadline)
        except (Expired, Overloaded):
            return True
        return False

    run(scenario())
