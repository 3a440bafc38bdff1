"""Who gets a place, and who is refused, under a clock and an engine that the test controls."""

import asyncio
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_bench import Bench, image, run

from irv2.errors import Expired, NotServing, Overloaded
from irv2.serve.pipeline.admission import MARGIN


def test_a_request_whose_deadline_has_passed_is_not_admitted():
    async def scenario():
        with pytest.raises(Expired):
            await Bench().ask(0, timeout_s=0.0)

    run(scenario())


def test_what_cannot_be_done_in_time_is_refused_with_the_time_to_come_back():
    async def scenario():
        bench = Bench(seconds=lambda size: 1.0, max_batch=1)
        await bench.warm_up((1,))
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
        await bench.warm_up((1, 4))
        bench.engine.seconds = lambda size: 100.0  # a machine that slept is not believed
        await bench.warm_up((4,))
        deadline = bench.loop.time() + timeout_s
        if is_refused:
            with pytest.raises(Overloaded) as refused:
                bench.admission.check(num_images, deadline)
            assert refused.value.reason == "deadline"
        else:
            bench.admission.check(num_images, deadline)

    run(scenario())


def test_those_with_time_to_spare_do_not_shut_out_the_urgent():
    async def scenario():
        bench = Bench(seconds=lambda size: 0.05 + 0.05 * size)
        await bench.warm_up((1, 4))
        patient = [bench.ask_later(number) for number in range(64)]  # 4 s of work
        await asyncio.sleep(0.01)
        assert bench.admission.predicted_wait_s() > 3.5
        assert (await bench.ask(99, timeout_s=0.6)).queue_s < 0.1
        assert bench.runner.batches[3][0] == 99, "it runs next, behind the two of the warm-up"
        assert len(await asyncio.gather(*patient)) == 64

    run(scenario())


def test_an_urgent_request_is_refused_where_one_with_a_promise_would_be_late():
    async def scenario():
        bench = Bench(seconds=lambda size: 1.0, max_batch=1)
        await bench.warm_up((1,))
        waiting = [bench.ask_later(number, timeout_s=3 * MARGIN) for number in range(3)]
        await asyncio.sleep(0)
        expected = r"a request admitted earlier would be 1\.2 s late"
        with pytest.raises(Overloaded, match=expected) as refused:  # its own answer: after 2 s
            await bench.ask(3, timeout_s=3.0)
        assert refused.value.retry_after_s == pytest.approx(4 * MARGIN - 3 * MARGIN)
        await asyncio.gather(*waiting)

    run(scenario())


@pytest.mark.parametrize(("last_timeout_s", "is_refused"), [(3.0, True), (3.7, False)])
def test_only_a_request_pushed_into_a_later_batch_can_be_late(last_timeout_s, is_refused):
    async def scenario():
        bench = Bench(seconds=lambda size: 1.0)
        await bench.warm_up((1, 4))
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


def test_cancelled_members_of_the_running_batch_do_not_count_as_ahead():
    async def scenario():
        bench = Bench(seconds=lambda size: 1.0)
        await bench.warm_up((1, 4))
        tasks = [bench.ask_later(number) for number in range(9)]
        await asyncio.sleep(1.5)  # 0 is done, four run, four wait
        for task in tasks[1:4]:
            task.cancel()
        await asyncio.sleep(0)
        assert bench.admission.num_admitted == 5
        assert bench.admission.predicted_wait_s() == pytest.approx(0.5 + 1.0 + 1.0)
        tasks[5].cancel()
        await asyncio.sleep(0)
        assert bench.admission.predicted_wait_s() == pytest.approx(0.5 + 1.0)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert bench.admission.predicted_wait_s(4) == pytest.approx(1.0), "none is ahead"

    run(scenario())


def test_images_that_are_still_being_prepared_count_in_the_predicted_wait():
    async def scenario():
        bench = Bench(prepare_s=lambda num_images: 0.5 * num_images)
        await bench.warm_up((1, 4))  # 0.1 s each
        deadline = bench.loop.time() + 60.0
        with bench.admission.admit(3, deadline) as places:
            assert bench.admission.predicted_wait_s() == pytest.approx(4 * 0.5 + 0.1)
            with pytest.raises(Overloaded):
                bench.admission.admit(1, bench.loop.time() + 2.1)
            await places.run(image(0))
            assert bench.admission.predicted_wait_s() == pytest.approx(3 * 0.5 + 0.1)
        assert bench.admission.predicted_wait_s() == pytest.approx(0.5 + 0.1)

    run(scenario())


def test_prepared_images_wait_for_no_preparation_of_their_own():
    async def scenario():
        bench = Bench(prepare_s=lambda num_images: 0.5 * num_images)
        await bench.warm_up((1, 4))
        with bench.admission.admit(3, bench.loop.time() + 60.0, prepared=True) as places:
            await places.run(image(0))
            assert bench.admission.predicted_wait_s() == pytest.approx(0.5 + 0.1)
            soon = bench.loop.time() + 0.4
            with pytest.raises(Overloaded):
                bench.admission.admit(1, soon)
            with bench.admission.admit(1, soon, prepared=True) as places:
                await places.run(image(1))

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


def test_one_slow_batch_does_not_count_for_ever():
    async def scenario():
        slow = iter([100.0])
        bench = Bench(seconds=lambda size: next(slow, 0.1))
        await bench.ask(0, timeout_s=200.0)
        answer = await bench.ask(1, timeout_s=1.0)  # by the average it would take 100 s
        assert answer.logits[0] == 1

    run(scenario())


def test_places_not_taken_are_free_again():
    async def scenario():
        admission = Bench().admission
        with admission.admit(64, asyncio.get_running_loop().time() + 1.0):
            assert admission.num_admitted == 64
        assert admission.num_admitted == 0

    run(scenario())


def test_streams_take_turns_in_what_is_predicted():
    async def scenario():
        bench = Bench(seconds=lambda size: 1.0, max_batch=2, num_streams=2)
        await bench.warm_up((1, 2))
        assert bench.admission.predicted_wait_s(4) == pytest.approx(1.0)
        assert bench.admission.predicted_wait_s(5) == pytest.approx(2.0)
        tasks = [bench.ask_later(0)]
        await asyncio.sleep(0.4)
        assert bench.admission.predicted_wait_s() == pytest.approx(1.0), "one stream is idle"
        tasks.append(bench.ask_later(1))
        await asyncio.sleep(0.1)  # the streams are free in 0.5 and in 0.9 s
        expected = {1: 1.5, 2: 1.5, 3: 1.9, 4: 1.9, 5: 2.5, 7: 2.9}
        waits = {number: bench.admission.predicted_wait_s(number) for number in expected}
        assert waits == pytest.approx(expected)
        await asyncio.gather(*tasks)

    run(scenario())


@pytest.mark.parametrize(
    ("num_images", "timeout_s", "is_refused"),
    [(8, 0.1, False), (9, 0.9, True), (9, 1.1, False), (16, 1.9, True), (16, 2.1, False)],
)
def test_idle_streams_refuse_more_than_a_batch_each_only_where_they_could_never_be_in_time(
    num_images, timeout_s, is_refused
):
    async def scenario():
        bench = Bench(seconds=lambda size: 1.0, num_streams=2)
        await bench.warm_up((1, 4))
        deadline = bench.loop.time() + timeout_s
        if is_refused:
            with pytest.raises(Overloaded):
                bench.admission.check(num_images, deadline)
        else:
            bench.admission.check(num_images, deadline)

    run(scenario())


def test_one_slow_batch_does_not_count_for_ever_where_a_stream_is_always_idle():
    async def scenario():
        bench = Bench(seconds=lambda size: 1.0, num_streams=2)
        await bench.warm_up((1, 4))
        bench.engine.seconds = lambda size: 100.0
        await bench.ask(0, timeout_s=200.0)
        bench.engine.seconds = lambda size: 0.5  # alone it is quicker than beside another
        for number in range(20):
            await bench.ask(number)
        assert bench.batcher.times.predict(1) == pytest.approx(1.0, rel=0.5)
        assert bench.batcher.times.predict(1) >= 1.0, "what is promised is promised under load"

    run(scenario())


@settings(max_examples=150, deadline=None)
@given(
    arrivals=st.lists(st.tuples(st.floats(0, 0.4), st.floats(0.01, 6.0)), max_size=60),
    max_batch=st.integers(1, 5),
    num_streams=st.sampled_from([1, 2, 4]),
    batch_share=st.sampled_from([0.0, 1.0]),
    cancelled=st.sets(st.integers(0, 59)),
)
def test_where_batches_take_what_was_measured_nobody_with_a_place_is_late(
    arrivals, max_batch, num_streams, batch_share, cancelled
):
    """`batch_share` is how much of a lone image's second is the batch's, not the image's."""

    async def scenario():
        bench = Bench(
            lambda size: batch_share + (1 - batch_share) * size, max_batch, num_streams=num_streams
        )
        await bench.warm_up(range(1, max_batch + 1))
        late, tasks = [], []

        async def ask(number, deadline):
            try:
                with bench.admission.admit(1, deadline) as places:
                    await places.run(image(number))
            except Overloaded:
                return
            except Expired:
                late.append(number)
            if bench.loop.time() > deadline:
                late.append(number)

        for number, (gap_s, timeout_s) in enumerate(arrivals):
            await asyncio.sleep(gap_s)
            timeout_s += MARGIN  # an idle server tries what can't be in time
            tasks.append(asyncio.create_task(ask(number, bench.loop.time() + timeout_s)))
            if number in cancelled:
                bench.loop.call_later(timeout_s / 2, tasks[-1].cancel)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert not late

    run(scenario())


def test_closing_answers_everything_admitted_and_refuses_the_rest():
    async def scenario():
        bench = Bench(max_batch=1, max_queue_delay_ms=50)
        waiting = [bench.ask_later(number) for number in range(3)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(bench.admission.close())
        await asyncio.sleep(0)
        with pytest.raises(NotServing):
            await bench.ask(3)
        await closing
        assert [task.result().logits[0] for task in waiting] == [0, 1, 2]

    run(scenario())


@pytest.mark.parametrize(("of_capacity", "num_streams"), [(3.0, 1), (10.0, 1), (3.0, 2), (3.0, 4)])
@pytest.mark.parametrize("timeout_s", [(1.5,), (4.0,), (1.5, 4.0, 20.0)])
def test_far_beyond_its_capacity_the_engine_does_useful_work_only(
    of_capacity, num_streams, timeout_s
):
    """What is refused is refused so that what is admitted comes in time, in full batches."""
    rng = np.random.default_rng(0)
    capacity = num_streams * 8 / 0.86  # images/s in full batches
    outcomes = Counter()

    def batch_s(size):  # as the full network's on two cores: a part for each batch, 5 % noise
        return (0.06 + 0.1 * size) * float(rng.lognormal(0.0, 0.05))

    async def scenario():
        bench = Bench(batch_s, max_batch=8, max_queue=256, num_streams=num_streams)
        await bench.warm_up((1, 2, 4, 8))

        async def ask():
            deadline = bench.loop.time() + float(rng.choice(timeout_s))
            try:
                async with asyncio.timeout_at(deadline):
                    with bench.admission.admit(1, deadline) as places:
                        await places.run(image(0))
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
