"""Requests to a server in this process over a real socket; the engine is slow where asked."""

import asyncio
import time

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from serving_site import Site, detail, jpeg, request, scenario_with

from irv2.inference import open_inference_pb2 as oip
from irv2.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub
from irv2.serve.rpc.early_refusal import QUEUED
from irv2.serve.rpc.port import LAST_ANSWER_S
from irv2.v1.classifier_pb2 import (
    ClassifyRequest,
    ClassifyResponse,
    ClassifyStreamRequest,
    GetModelRequest,
    Image,
)


def indices(result) -> list[int]:
    return [score.index for score in result.scores]


def test_many_images_are_split_over_batches_and_joined_in_order(bundle):
    async def scenario(site):
        numbers = range(20)
        response = await site.stub.Classify(request(*numbers, id="many"))
        expected = bundle.classify([jpeg(number) for number in numbers])
        assert [indices(result) for result in response.results] == [
            indices(result) for result in expected
        ]
        assert (response.id, response.model_id) == ("many", bundle.id)
        assert sum(site.runner.sizes) == 20
        assert max(site.runner.sizes) <= 4

    scenario_with(bundle, scenario, seconds=0.005)


def test_a_reply_says_where_its_time_went(bundle):
    async def scenario(site):
        timing = (await site.stub.Classify(request(*range(8)))).timing
        assert timing.preprocess_us > 0
        assert timing.inference_us >= 50_000
        assert timing.queue_us >= 40_000, "the second batch waits for the first"
        assert timing.total_us >= timing.queue_us + timing.inference_us

    scenario_with(bundle, scenario, seconds=0.05)


@pytest.mark.parametrize(("top_k", "num_scores"), [(0, 5), (1, 1), (10, 10), (2**32 - 1, 10)])
def test_top_k_of_0_means_5_and_more_than_there_are_means_all(bundle, top_k, num_scores):
    async def scenario(site):
        (result,) = (await site.stub.Classify(request(0, top_k=top_k))).results
        assert len(result.scores) == num_scores
        probabilities = [score.probability for score in result.scores]
        assert probabilities == sorted(probabilities, reverse=True)

    scenario_with(bundle, scenario)


def test_a_bad_image_fails_alone(bundle):
    async def scenario(site):
        images = [Image(encoded=jpeg(0)), Image(encoded=b"hello"), Image()]
        response = await site.stub.Classify(ClassifyRequest(images=images))
        good, text, empty = response.results
        assert good.scores
        assert not good.HasField("error")
        for result, reason in ((text, "NOT_AN_IMAGE"), (empty, "EMPTY")):
            assert not result.scores
            info = detail(result.error, error_details_pb2.ErrorInfo)
            assert (info.domain, info.reason) == ("irv2", reason)

    scenario_with(bundle, scenario)


@pytest.mark.parametrize("num_images", [0, 21])
def test_a_request_of_none_or_too_many_images_is_invalid(bundle, num_images):
    async def scenario(site):
        images = [Image(encoded=b"x")] * num_images
        code, status = await site.refusal(ClassifyRequest(images=images))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        (violation,) = detail(status, error_details_pb2.BadRequest).field_violations
        assert violation.field == "images"
        assert "1 to 20" in violation.description

    scenario_with(bundle, scenario)


def test_a_message_too_large_is_refused_and_not_to_be_retried(bundle):
    async def scenario(site):
        code, status = await site.refusal(ClassifyRequest(images=[Image(encoded=bytes(1_000_001))]))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert status is None
        assert (await site.stub.Classify(request(0))).results[0].scores

    scenario_with(bundle, scenario)


def test_the_model_and_the_limits_are_described(bundle):
    async def scenario(site):
        answer = await site.stub.GetModel(GetModelRequest())
        assert (answer.model.id, list(answer.model.classes)) == (bundle.id, bundle.classes)
        assert (answer.model.precision, answer.model.backend) == ("fp32", "onnxruntime-cpu")
        assert answer.model.max_batch == 4
        assert bundle.preprocess.sha256 in answer.model.preprocess_json
        assert '"verdict":"passed"' in answer.model.parity_json
        assert answer.limits.max_images == 20
        assert answer.limits.max_message_bytes == 1_000_000

    scenario_with(bundle, scenario)


def test_a_request_without_a_deadline_gets_the_default_one(bundle):
    async def scenario(site):
        code, _ = await site.refusal(request(0))
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED

    scenario_with(bundle, scenario, seconds=0.4, default_deadline_ms=150)


def test_requests_given_up_by_their_clients_never_reach_the_engine(bundle):
    async def scenario(site):
        site.runner.seconds = 0.5  # slower than it was, which admission can't foresee
        first = site.stub.Classify(request(0))
        await asyncio.sleep(0.1)
        cancelled = site.stub.Classify(request(1))
        expired = site.stub.Classify(request(2), timeout=0.2)
        await asyncio.sleep(0.1)
        cancelled.cancel()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await expired
        assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert (await first).results[0].scores
        await site.stub.Classify(request(3))
        assert site.runner.sizes == [1, 1]

    scenario_with(bundle, scenario, seconds=0.01)


@pytest.mark.alone
def test_overload_is_refused_at_once_with_the_time_to_come_back(bundle):
    async def scenario(site):
        waiting = [site.stub.Classify(request(number)) for number in range(4)]
        await asyncio.sleep(0.1)
        started_at = time.monotonic()
        code, status = await site.refusal(request(9), timeout_s=0.5)  # one runs for 0.4 s yet
        assert time.monotonic() - started_at < 0.3
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        retry = detail(status, error_details_pb2.RetryInfo)
        # 0.9 s and a fifth, and the decoding, which a busy machine makes slower.
        assert 0.3 < retry.retry_delay.ToMilliseconds() / 1e3 < 2.5
        for response in await asyncio.gather(*waiting):
            assert response.results[0].scores

    scenario_with(bundle, scenario, seconds=0.5, max_batch=1)


@pytest.mark.parametrize("method", QUEUED)
def test_what_cannot_be_answered_in_time_is_refused_before_its_message_comes(bundle, method):
    async def scenario(site):
        async def messages():
            await asyncio.Event().wait()
            yield b""

        waiting = site.stub.Classify(request(*range(8)))  # two batches
        await asyncio.sleep(0.05)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await site.channel.stream_unary(method)(messages(), timeout=0.3)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await waiting).results[0].scores
        assert sum(site.runner.sizes) == 8
        assert counted(site, 'refused_total{reason="deadline"}') == 1
        assert (await statistics_of(site)).fail.count == 1

    scenario_with(bundle, scenario, seconds=0.2)


def test_a_call_without_a_message_is_invalid(bundle):
    async def scenario(site):
        async def messages():
            return
            yield

        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await site.channel.stream_unary(QUEUED[0])(messages())
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    scenario_with(bundle, scenario)


def counted(site, name: str) -> float:
    """One line of /metrics."""
    lines = site.server.metrics_text().decode().splitlines()
    (value,) = [line.rpartition(" ")[2] for line in lines if line.startswith(f"irv2_{name} ")]
    return float(value)


async def statistics_of(site) -> oip.InferStatistics:
    """Requests answered and failed since the model took over."""
    stub = GRPCInferenceServiceStub(site.channel)
    (model,) = (await stub.ModelStatistics(oip.ModelStatisticsRequest())).model_stats
    return model.inference_stats


def test_refusals_are_counted_by_reason(bundle):
    async def scenario(site):
        waiting = site.stub.Classify(request(*range(20)), timeout=10)
        await asyncio.sleep(0.1)
        await site.refusal(request(9), timeout_s=10)
        waiting.cancel()
        waiting = site.stub.Classify(request(*range(4)), timeout=10)
        await asyncio.sleep(0.1)
        await site.refusal(request(9), timeout_s=0.2)
        assert (await waiting).results[0].scores
        assert counted(site, 'refused_total{reason="queue_full"}') == 1
        assert counted(site, 'refused_total{reason="deadline"}') == 1

    scenario_with(bundle, scenario, seconds=0.3, max_queue=20)


def test_expired_requests_are_counted_by_where_they_were(bundle):
    async def scenario(site):
        site.runner.seconds = 0.5  # slower than it was, which admission can't foresee
        call = site.stub.ClassifyStream()
        await call.write(message("running", 0, timeout_ms=300))
        await asyncio.sleep(0.1)
        await call.write(message("waiting", 1, timeout_ms=100))
        assert [(await call.read()).id for _ in range(2)] == ["waiting", "running"]
        await call.done_writing()
        assert counted(site, 'expired_total{where="queue"}') == 1
        assert counted(site, 'expired_total{where="engine"}') == 1
        assert counted(site, 'expired_total{where="arrival"}') == 0
        statistics = await statistics_of(site)
        assert (statistics.success.count, statistics.fail.count) == (0, 2)
        assert 0.3e9 < statistics.fail.ns < 0.8e9

    scenario_with(bundle, scenario, seconds=0.01)


def test_a_call_that_grpc_ends_at_its_deadline_counts_as_expired(bundle):
    async def scenario(site):
        site.runner.seconds = 0.3
        waiting = [site.stub.Classify(request(number), timeout=0.1) for number in range(20)]
        codes = [await call.code() for call in waiting]
        expired = codes.count(grpc.StatusCode.DEADLINE_EXCEEDED)
        # On a busy machine some arrive after the first batch, which tells that they would expire.
        assert expired + codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 20
        assert expired > 0
        left = site.stub.Classify(request(0), timeout=10)
        await asyncio.sleep(0.1)
        left.cancel()
        while 'outcome="cancelled"' not in site.server.metrics_text().decode():
            await asyncio.sleep(0.01)
        assert counted(site, 'requests_total{outcome="cancelled"}') == 1
        assert counted(site, 'requests_total{outcome="deadline_exceeded"}') == expired
        places = ("arrival", "queue", "engine", "call")
        assert (
            sum(counted(site, f'expired_total{{where="{place}"}}') for place in places) == expired
        )

    scenario_with(bundle, scenario, seconds=0.001)


def test_calls_that_end_before_their_message_is_whole_are_counted(bundle):
    async def scenario(site):
        async def late():
            await asyncio.sleep(10)
            yield b""

        async def none():
            return
            yield

        call = site.channel.stream_unary(QUEUED[0])
        expired, left = call(late(), timeout=0.1), call(late())
        too_large, empty = call(iter([bytes(1_000_001)])), call(none())
        codes = [await each.code() for each in (expired, too_large, empty)]
        left.cancel()
        assert codes == [
            grpc.StatusCode.DEADLINE_EXCEEDED,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            grpc.StatusCode.INVALID_ARGUMENT,
        ]
        while 'total{outcome="unread"} 3.0' not in site.server.metrics_text().decode():
            await asyncio.sleep(0.01)
        assert counted(site, 'requests_total{outcome="deadline_exceeded"}') == 1
        assert counted(site, 'expired_total{where="call"}') == 1

    scenario_with(bundle, scenario)


def test_a_server_that_stops_waits_for_a_message_that_is_on_its_way(bundle):
    async def scenario(site):
        stopping = asyncio.Event()

        async def messages():
            await stopping.wait()
            await asyncio.sleep(LAST_ANSWER_S + 0.3)
            yield request(0).SerializeToString()

        call = site.channel.stream_unary(QUEUED[0])(messages(), timeout=10)
        await asyncio.sleep(0.2)
        stop = asyncio.create_task(site.server.stop())
        stopping.set()
        assert (ClassifyResponse.FromString(await call)).results[0].scores
        await stop

    scenario_with(bundle, scenario)


def test_what_was_admitted_is_answered_whatever_its_deadline_when_the_server_stops(bundle):
    async def scenario(site):
        waiting = [site.stub.Classify(request(number), timeout=10) for number in range(4)]
        await asyncio.sleep(0.1)
        await site.server.stop()
        for response in await asyncio.gather(*waiting):
            assert response.results[0].scores

    scenario_with(bundle, scenario, seconds=0.3, max_batch=1, default_deadline_ms=200)


def test_open_requests_are_cut_off_when_stopping_takes_longer_than_it_may(bundle):
    async def scenario(site):
        waiting = site.stub.Classify(request(*range(8)), timeout=10)
        await asyncio.sleep(0.1)
        await site.server.stop()
        with pytest.raises(grpc.aio.AioRpcError) as cut:
            await waiting
        assert cut.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)

    scenario_with(bundle, scenario, seconds=0.5, max_batch=1, stop_timeout_s=0.1)


def test_a_client_that_watches_health_does_not_delay_the_stop(bundle):
    async def scenario(site):
        watch = site.health.Watch(health_pb2.HealthCheckRequest())
        await watch.read()
        started_at = time.monotonic()
        await site.server.stop()
        assert time.monotonic() - started_at < 5

    scenario_with(bundle, scenario)


def test_an_engine_failure_is_internal_and_over_with_its_batch(bundle, caplog):
    async def scenario(site):
        site.runner.error = RuntimeError("CUDA error in /secret/path")
        (result,) = (await site.stub.Classify(request(0))).results
        assert result.error.code == grpc.StatusCode.INTERNAL.value[0]
        assert detail(result.error, error_details_pb2.ErrorInfo).reason == "INTERNAL"
        assert "secret" not in str(result)
        site.runner.error = None
        assert (await site.stub.Classify(request(0))).results[0].scores

    scenario_with(bundle, scenario)
    (record,) = [record for record in caplog.records if "batch_failed" in record.message]
    assert "secret" in str(record.exc_info[1]), "the log says what the client must not learn"


def test_a_server_that_warms_up_says_so(bundle):
    async def scenario():
        site = Site(bundle, seconds=0.3)
        starting = asyncio.create_task(site.server.start())
        await asyncio.sleep(0.1)
        site.connect()
        async with site.channel:
            check = health_pb2.HealthCheckRequest(service="irv2.v1.Classifier")
            answer = await site.health.Check(check)
            assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
            code, _ = await site.refusal(request(0))
            assert code is grpc.StatusCode.UNAVAILABLE
            await starting
            answer = await site.health.Check(check)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            assert (await site.stub.Classify(request(0))).results[0].scores
        await site.server.stop()

    asyncio.run(scenario())


def message(request_id: str, *numbers: int, timeout_ms: int = 0) -> ClassifyStreamRequest:
    return ClassifyStreamRequest(request=request(*numbers, id=request_id), timeout_ms=timeout_ms)


def test_a_stream_answers_every_request_and_no_refusal_ends_it(bundle):
    async def scenario(site):
        call = site.stub.ClassifyStream()
        sent = [message("a", 0), message("a", 1), message("", 2), message("b"), message("c", 3, 4)]
        for each in sent:
            await call.write(each)
        answers = [await call.read() for _ in sent]
        await call.write(message("a", 5))  # closed by now, so its id is free
        answers.append(await call.read())
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        got = {(answer.id, answer.WhichOneof("outcome")) for answer in answers}
        assert got == {
            ("a", "response"),
            ("a", "error"),
            ("", "error"),
            ("b", "error"),
            ("c", "response"),
        }
        for answer in answers:
            if answer.WhichOneof("outcome") == "error":
                assert answer.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
                assert detail(answer.error, error_details_pb2.BadRequest).field_violations
            else:
                assert answer.response.id == answer.id
        (three_four,) = [answer.response for answer in answers if answer.id == "c"]
        expected = bundle.classify([jpeg(3), jpeg(4)])
        assert [indices(result) for result in three_four.results] == list(map(indices, expected))

    scenario_with(bundle, scenario, seconds=0.05)


def test_a_message_of_a_stream_may_have_its_own_deadline(bundle):
    async def scenario(site):
        call = site.stub.ClassifyStream()
        await call.write(message("impatient", 0, timeout_ms=100))
        await call.write(message("patient", 1))
        first, second = await call.read(), await call.read()
        await call.done_writing()
        assert (first.id, first.error.code) == (
            "impatient",
            grpc.StatusCode.DEADLINE_EXCEEDED.value[0],
        )
        assert (second.id, second.WhichOneof("outcome")) == ("patient", "response")

    scenario_with(bundle, scenario, seconds=0.3)


def test_a_stream_of_large_requests_waits_for_its_turn_and_none_is_refused(bundle):
    async def scenario(site):
        call = site.stub.ClassifyStream()
        numbers = range(20)

        async def write_all():
            for number in range(30):
                await call.write(message(str(number), *numbers))
            await call.done_writing()

        writing = asyncio.create_task(write_all())
        most_admitted, outcomes = 0, []
        async for answer in call:
            outcomes.append(answer.WhichOneof("outcome"))
            most_admitted = max(most_admitted, counted(site, "queue_images"))
        await writing
        assert outcomes == ["response"] * 30
        assert most_admitted <= 16 or most_admitted == 20, "a quarter of the queue, or one request"

    scenario_with(bundle, scenario, max_queue=64)


def test_a_request_that_was_read_and_waits_for_room_in_its_stream_is_answered_at_the_stop(bundle):
    async def scenario(site):
        call = site.stub.ClassifyStream()
        await call.write(message("in work", 0, timeout_ms=1500))
        await call.write(message("waits", *range(15)))  # 2 s more, beyond the other's deadline
        await call.write(message("in the client", 0))
        while not site.runner.sizes:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        stopping = asyncio.create_task(site.server.stop())
        answers = [await call.read(), await call.read()]
        assert [answer.id for answer in answers] == ["in work", "waits"]
        assert all(answer.response.results for answer in answers)
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        await stopping

    scenario_with(bundle, scenario, seconds=0.5, max_queue=20)


@pytest.mark.slow
def test_a_message_that_waits_for_room_in_its_stream_keeps_its_deadline(bundle):
    async def scenario(site):
        call = site.stub.ClassifyStream()
        await call.write(message("large", *range(20)))  # 2.5 s
        await call.write(message("waits", 0, timeout_ms=100))
        await call.write(message("next", 0))
        answers = [await call.read() for _ in range(3)]
        await call.done_writing()
        assert [(answer.id, answer.error.code) for answer in answers] == [
            ("waits", grpc.StatusCode.DEADLINE_EXCEEDED.value[0]),
            ("large", 0),
            ("next", 0),
        ]

    scenario_with(bundle, scenario, seconds=0.5, max_queue=40)


def test_small_requests_of_a_stream_are_worked_on_together(bundle):
    async def scenario(site):
        call = site.stub.ClassifyStream()
        for number in range(16):
            await call.write(message(str(number), number))
        await call.done_writing()
        assert len([answer async for answer in call]) == 16
        assert max(site.runner.sizes) == 4

    scenario_with(bundle, scenario, seconds=0.05, max_queue=64)


@pytest.mark.parametrize("characters", ["x", "\u00e4"])
def test_an_id_that_is_too_long_is_invalid(bundle, characters):
    async def scenario(site):
        long = characters * 256 + "x"
        code, status = await site.refusal(request(0, id=long))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        (violation,) = detail(status, error_details_pb2.BadRequest).field_violations
        assert violation.field == "id"
        assert "at most 256" in violation.description
        call = site.stub.ClassifyStream()
        await call.write(message(long, 0))
        assert (await call.read()).error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        await call.done_writing()
        assert (await site.stub.Classify(request(0, id="x" * 256))).id == "x" * 256

    scenario_with(bundle, scenario)


def test_a_stream_whose_client_vanishes_leaves_no_work_and_no_complaint(bundle, caplog):
    async def scenario(site):
        call = site.stub.ClassifyStream()
        for number in range(10):
            await call.write(message(str(number), number))
        await asyncio.sleep(0.15)
        call.cancel()
        await asyncio.sleep(0.4)
        site.runner.sizes.clear()
        assert (await site.stub.Classify(request(0))).results[0].scores
        assert site.runner.sizes == [1]

    scenario_with(bundle, scenario, seconds=0.1)
    assert not caplog.records


def test_an_engine_that_fails_one_batch_in_ten_costs_those_images_alone(bundle, caplog):
    async def scenario(site):
        site.runner.fails_every = 10
        asked = [site.stub.Classify(request(number % 8)) for number in range(120)]
        responses = await asyncio.gather(*asked)
        expected = [indices(result) for result in bundle.classify(list(map(jpeg, range(8))))]
        num_failed = 0
        for number, response in enumerate(responses):
            (result,) = response.results
            if result.HasField("error"):
                num_failed += 1
                assert detail(result.error, error_details_pb2.ErrorInfo).reason == "INTERNAL"
                assert "purpose" not in str(result.error), "clients learn nothing of our insides"
            else:
                assert indices(result) == expected[number % 8]
        failed_batches = site.runner.sizes[9::10]
        assert num_failed == sum(failed_batches) > 0
        assert caplog.text.count("batch_failed") == len(failed_batches)

    scenario_with(bundle, scenario, seconds=0.001)
