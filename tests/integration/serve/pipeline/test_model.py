"""One model from its start to its end: what is tried and warmed up, what happens when it breaks."""

import asyncio
import io
import json
import threading
from contextlib import suppress
from dataclasses import replace
from itertools import count

import PIL.Image
import pytest
from grpc_health.v1 import health_pb2
from serving_site import OPTIONS, PacedRunner, loop_watched, request, scenario_with
from tiny_bundle import edit, write_tiny_bundle

from irv2.bundle import Bundle
from irv2.errors import EngineError, UsageError
from irv2.manifest import MANIFEST, read_manifest
from irv2.runners.choose import open_best
from irv2.runners.onnx import OnnxRunner
from irv2.runners.parallel import ParallelRunner
from irv2.self_test import SELF_TEST, SelfTest
from irv2.serve.operations.metrics import Metrics
from irv2.serve.pipeline.engine import OpenedModel
from irv2.serve.pipeline.model import ServedModel, start_model
from irv2.system.machine import instruction_set
from irv2.v1.classifier_pb2 import ClassifyRequest, GetModelRequest, Image


def opened(bundle: Bundle, seconds: float = 0.0, num_streams: int = 1) -> OpenedModel:
    choice = open_best(bundle.path, bundle.artifacts, num_threads=1, num_streams=num_streams)
    return OpenedModel(bundle, choice._replace(runner=PacedRunner(choice.runner, seconds)))


async def ignore_health() -> None:
    """No load balancer asks for health."""


def start(given: OpenedModel, **options):
    return start_model(ServedModel, given, replace(OPTIONS, **options), Metrics(), ignore_health)


@pytest.mark.parametrize(
    ("batch_sizes", "max_batch", "expected"),
    [
        ([1, 2, 3, 7, 16], None, [1, 2, 3, 7, 8]),  # 8 is what a CPU takes at most
        ([1, 2, 3, 7, 16], 16, [1, 2, 3, 7, 16]),
        ([1, 2, 4, 8, 16], 1, [1]),
        (None, 6, [1, 2, 4, 6]),
    ],
)
def test_every_certified_size_is_tried_and_goes_the_whole_way(
    batch_sizes, max_batch, expected, tmp_path
):
    async def scenario():
        given = opened(Bundle.open(write_tiny_bundle(tmp_path / "b", batch_sizes=batch_sizes)))
        model = await start(given, max_batch=max_batch)
        sizes = given.choice.runner.sizes
        assert sizes[: len(expected)] == expected, "the known images, a batch of each size"
        assert sum(sizes) == 2 * sum(expected), "and as many photographs through the decoder"
        assert model.engine.self_test == "passed"
        assert model.statistics.num_images == 0, "no client has asked yet"
        assert model.admission.predicted_wait_s(max(expected)) > 0
        await model.close()

    asyncio.run(scenario())


def test_an_engine_that_makes_batches_of_parts_is_tried_by_parts_alone(tmp_path):
    async def scenario():
        bundle = Bundle.open(write_tiny_bundle(tmp_path / "b", batch_sizes=[*range(1, 17)]))
        given = opened(bundle)
        given.choice.runner.part_sizes = (4, 1)  # as OpenVINO's
        model = await start(given, max_batch=None)
        sizes = given.choice.runner.sizes
        assert sizes[:2] == [1, 4]
        assert sum(sizes) == 2 * (1 + 4), "and as many photographs"
        await model.close()

    asyncio.run(scenario())


def on_two_engines(bundle: Bundle) -> tuple[OpenedModel, list[PacedRunner]]:
    """A model opened on two engines, and these, the first one first."""
    bundle, choice = opened(bundle)
    artifact = choice.artifact
    engines = [
        PacedRunner(OnnxRunner(bundle.path / artifact.file, "cpu", 1, artifact.max_batch), 0.0)
        for _ in range(2)
    ]
    runner = ParallelRunner([lambda engine=engine: engine for engine in engines])
    return OpenedModel(bundle, choice._replace(runner=runner)), engines


def test_two_engines_make_batches_twice_as_large_and_each_is_tried_at_every_certified_size(
    tmp_path,
):
    async def scenario():
        bundle = Bundle.open(write_tiny_bundle(tmp_path / "b", batch_sizes=[1, 2, 3, 16]))
        model = await start(on_two_engines(bundle)[0], max_batch=None)
        assert model.description.max_batch == 8, "of a CPU, however many engines"
        await model.close()

        given, engines = on_two_engines(bundle)
        model = await start(given, max_batch=32)
        assert model.description.max_batch == 32
        for engine in engines:
            assert {1, 2, 3, 16} <= set(engine.sizes[:5])
            assert max(engine.sizes) == 16, "what the gate certified for one"
        await model.close()
        with pytest.raises(UsageError, match="at most 32"):
            await start(on_two_engines(bundle)[0], max_batch=33)

    asyncio.run(scenario())


def test_a_broken_one_of_two_engines_is_noticed(bundle, caplog):
    async def scenario():
        given, engines = on_two_engines(bundle)
        model = await start(given, max_batch=2, max_queue_delay_ms=1000)
        engines[1].error = EngineError("CUDA", "the device is lost")
        for _ in range(3):
            await model.pipeline.classify(request(0, 1), asyncio.get_running_loop().time() + 10)
        await wait_until(lambda: not model.engine.is_healthy)
        await model.close()

    asyncio.run(scenario())
    assert "engine_broken error=CUDA: the device is lost" in caplog.text


class OneBroken(PacedRunner):
    """The streams take turns, as ONNX Runtime's do, and one of them is broken."""

    def run(self, images):
        with self.turn_lock:
            is_broken = next(self.turns) % self.num_streams == 1
        if is_broken and self.error:
            raise self.error
        return super().run(images)

    turn_lock, turns = threading.Lock(), count()


def on_three_streams(bundle: Bundle) -> OpenedModel:
    bundle, choice = opened(bundle, num_streams=3)
    return OpenedModel(bundle, choice._replace(runner=OneBroken(choice.runner.inner, 0.0)))


def test_every_stream_is_tried_at_the_start(bundle):
    async def scenario():
        given = on_three_streams(bundle)
        model = await start(given, max_batch=2, num_streams=3)
        assert given.choice.runner.sizes[:6] == [1, 1, 1, 2, 2, 2]
        await model.close()
        given = on_three_streams(bundle)
        given.choice.runner.error = EngineError("stream", "is broken")
        given.choice.runner.fails_on = no_other
        with pytest.raises(EngineError, match="is broken"):
            await start(given, num_streams=3)
        assert given.choice.runner.is_closed

    asyncio.run(scenario())


def no_other(images) -> bool:
    return False


def test_the_ready_line_and_get_model_say_how_the_engine_was_chosen(tmp_path):
    async def scenario(site):
        assert site.server.ready_line.endswith(" chosen=recorded:41.5images/s")
        assert site.server.description["choice"] == "recorded 41.5 images/s"
        model = (await site.stub.GetModel(GetModelRequest())).model
        assert (model.backend, model.choice) == ("onnxruntime-cpu", "recorded 41.5 images/s")
        assert json.loads(model.parity_json)["ran_on"] == "onnxruntime-cpu"

    def record(manifest):
        [artifact] = manifest["artifacts"]
        artifact["evidence"] = [
            {
                "backend": "onnxruntime-cpu",
                "instruction_set": instruction_set("onnxruntime-cpu"),
                "threads": 2,
                "parity": artifact["parity"],
                "invariance": None,
                "images_per_s": 41.5,
            }
        ]

    path = write_tiny_bundle(tmp_path / "b")
    edit(path, record)
    scenario_with(Bundle(path, read_manifest(path / MANIFEST)), scenario)


def test_two_streams_answer_two_requests_at_once(bundle):
    async def scenario(site):
        assert " streams=2" in site.server.ready_line
        assert site.server.description["streams"] == 2
        both = asyncio.gather(*(site.stub.Classify(request(number)) for number in range(2)))
        await wait_until(lambda: "running_batches 2.0" in site.server.metrics_text().decode())
        assert [response.results[0].scores != [] for response in await both] == [True, True]
        assert site.runner.sizes == [1, 1]
        assert "running_batches 0.0" in site.server.metrics_text().decode()

    scenario_with(bundle, scenario, seconds=0.5, num_streams=2, max_batch=1)


def test_a_broken_one_of_three_streams_is_noticed(bundle, caplog):
    async def scenario():
        given = on_three_streams(bundle)
        model = await start(given, max_batch=1, num_streams=3)
        given.choice.runner.fails_on = no_other
        given.choice.runner.error = EngineError("stream", "is broken")
        for _ in range(9):
            await model.pipeline.classify(request(0), asyncio.get_running_loop().time() + 10)
        await wait_until(lambda: not model.engine.is_healthy)
        given.choice.runner.error = None
        await wait_until(lambda: model.engine.is_healthy)
        await model.close()

    asyncio.run(scenario())
    assert "engine_broken error=stream: is broken" in caplog.text


def test_more_streams_than_the_engine_has_are_refused(bundle):
    async def scenario():
        given = opened(bundle)  # as on a GPU
        with pytest.raises(UsageError, match="--streams: 2; expected 1 on onnxruntime-cpu"):
            await start(given, num_streams=2)
        assert given.choice.runner.is_closed

    asyncio.run(scenario())


def test_a_model_that_cannot_be_set_up_leaves_no_engine_behind(bundle, tmp_path):
    async def scenario():
        given = opened(bundle)
        with pytest.raises(UsageError):
            await start(given, max_batch=17)
        assert given.choice.runner.is_closed

        wrong = Bundle.open(write_tiny_bundle(tmp_path / "wrong", passes_self_test=False))
        given = opened(wrong)
        with pytest.raises(EngineError, match="self-test"):
            await start(given)
        assert given.choice.runner.is_closed

    asyncio.run(scenario())


def test_a_model_closes_without_stopping_the_event_loop(bundle):
    file = io.BytesIO()
    PIL.Image.new("RGB", (5000, 5000)).save(file, "PNG", compress_level=1)  # 0.8 s to decode
    slow_to_decode = ClassifyRequest(images=[Image(encoded=file.getvalue())])

    async def scenario():
        given = opened(bundle)
        model = await start(given, max_image_pixels=25_000_000, max_image_bytes=1_000_000)
        given.choice.runner.close_s = 0.8
        given_up = asyncio.create_task(
            model.pipeline.classify(slow_to_decode, asyncio.get_running_loop().time() + 10)
        )
        await asyncio.sleep(0.05)
        given_up.cancel()
        async with loop_watched() as longest_s:
            await model.close()
            assert given.choice.runner.is_closed
            assert longest_s() < 0.4

    asyncio.run(scenario())


def test_a_model_is_closed_without_stopping_the_loop_while_it_still_warms_up(bundle):
    async def scenario():
        given = opened(bundle, seconds=0.4)
        starting = asyncio.create_task(start(given))
        await asyncio.sleep(0.1)
        async with loop_watched() as longest_s:
            starting.cancel()
            with suppress(asyncio.CancelledError):
                await starting
            assert longest_s() < 0.2
        assert given.choice.runner.is_closed

    asyncio.run(scenario())


async def health_of(site) -> int:
    check = health_pb2.HealthCheckRequest(service="irv2.v1.Classifier")
    return (await site.health.Check(check)).status


async def wait_for_health(site, status) -> None:
    async with asyncio.timeout(10):
        while await health_of(site) != status:
            await asyncio.sleep(0.02)


SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def test_an_engine_that_is_broken_for_good_is_not_ready_until_it_answers_again(bundle, caplog):
    caplog.set_level("INFO", "irv2.serve")

    async def scenario(site):
        site.runner.error = RuntimeError("the device is lost")
        for number in range(2):
            await site.stub.Classify(request(number))
        await asyncio.sleep(0.1)
        assert site.server.is_ready, "two failures may be chance"
        await site.stub.Classify(request(2))
        await wait_for_health(site, NOT_SERVING)
        assert not site.server.is_ready
        assert "irv2_ready 0.0" in site.server.metrics_text().decode()
        site.runner.error = None
        await wait_for_health(site, SERVING)
        assert site.server.is_ready

    scenario_with(bundle, scenario)
    lines = [record.getMessage() for record in caplog.records]
    assert lines.count("engine_broken error=the device is lost") == 1
    assert lines.count("engine_recovered") == 1


def test_failures_of_an_engine_that_passes_its_self_test_do_not_take_it_out(bundle):
    known = SelfTest.load(bundle.path / SELF_TEST).images[0]

    async def scenario(site):
        site.runner.error = RuntimeError("does not like photographs")
        site.runner.fails_on = lambda images: bool((images[0] != known).any())
        for number in range(4):
            (result,) = (await site.stub.Classify(request(number))).results
            assert result.HasField("error")
        await asyncio.sleep(0.1)
        assert site.server.is_ready

    scenario_with(bundle, scenario)


def test_a_reload_mends_a_broken_engine(bundle):
    async def scenario(site):
        site.runner.error = RuntimeError("the device is lost")
        for number in range(3):
            await site.stub.Classify(request(number))
        await wait_for_health(site, NOT_SERVING)
        await site.server.reload(bundle.path)
        assert site.server.is_ready
        assert await health_of(site) == SERVING
        assert (await site.stub.Classify(request(0))).results[0].scores

    scenario_with(bundle, scenario)


async def wait_until(is_so) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0.02)


def test_new_bundles_are_taken_while_the_engine_of_an_old_one_hangs(bundle):
    async def scenario(site):
        returns = threading.Event()
        site.runner.error = RuntimeError("never raised")
        site.runner.fails_on = lambda images: not returns.wait()
        hanging = asyncio.create_task(site.refusal(request(0), timeout_s=0.3))
        await wait_until(lambda: site.runner.sizes)
        try:
            for _ in range(2):
                await asyncio.wait_for(site.server.reload(bundle.path), 20)
                assert (await site.stub.Classify(request(0), timeout=10)).results[0].scores
            await hanging
            assert not site.runner.is_closed
        finally:
            returns.set()
        await wait_until(lambda: site.runner.is_closed)

    scenario_with(bundle, scenario)


def test_an_old_engine_that_can_not_be_closed_is_in_the_log_and_the_new_one_serves(bundle, caplog):
    async def scenario(site):
        def fail():
            raise RuntimeError("the device is lost")

        site.runner.close = fail
        await site.server.reload(bundle.path)
        await wait_until(lambda: "close_failed" in caplog.text)
        assert (await site.stub.Classify(request(0))).results[0].scores

    scenario_with(bundle, scenario)


def test_a_stop_waits_until_an_old_engine_is_closed(bundle):
    async def scenario(site):
        site.runner.close_s = 0.5
        await site.server.reload(bundle.path)
        assert not site.runner.is_closed
        await site.server.stop()
        assert site.runner.is_closed

    scenario_with(bundle, scenario)
