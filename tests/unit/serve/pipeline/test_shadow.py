"""When a shadow runs and what it counts, under a clock and engines that the test controls."""

import asyncio
import json
from types import SimpleNamespace

import pytest
from serving_bench import Bench, FakeEngine, FakeRunner, image, run
from tiny_bundle import CLASSES, PREPROCESS

from irv2.errors import UsageError
from irv2.images.preprocess import Preprocess
from irv2.serve.options import ShadowOptions
from irv2.serve.pipeline.batcher import Batcher
from irv2.serve.pipeline.shadow import MAX_WAITING, Shadow
from irv2.v1.classifier_pb2 import Model

TAKES_S = 0.1  # a run of either engine
SAME, OTHER = 0, 1  # best class of the served model; the shadow's is always the first


def described(model_id: str, preprocess: Preprocess = PREPROCESS, classes=CLASSES) -> Model:
    as_json = json.dumps(preprocess.to_json())
    return Model(id=model_id, classes=classes, preprocess_json=as_json)


class Served:
    """A model that answers requests, which `bench` makes."""

    def __init__(self, model_id: str = "served", **description) -> None:
        self.bench = Bench(seconds=lambda size: TAKES_S)
        self.admission = self.bench.admission
        self.description = described(model_id, **description)
        self.engine = SimpleNamespace(batcher=self.bench.batcher)
        self.pipeline = SimpleNamespace(on_answer=None)

    def answered(self, number: int, best: int = SAME, left_s: float = 10.0) -> None:
        self.pipeline.on_answer(image(number), best, left_s)


class Scene:
    """A shadow at work behind a served model, on every picture."""

    def __init__(self, **options) -> None:
        options = {"bundle": "other.bundle", "share_percent": 100.0, **options}
        self.served, self.runner = Served(), FakeRunner()
        engine = FakeEngine(lambda size: TAKES_S)
        self.engine = SimpleNamespace(
            batcher=Batcher(self.runner, max_batch=1, engine=engine),
            description=described("shadow"),
            artifact=SimpleNamespace(file="model.onnx"),
        )
        self.shadow = Shadow(self.engine, PREPROCESS, ShadowOptions(**options))
        self.shadow.follow(self.served)
        self.running = asyncio.create_task(self.shadow.run())

    @property
    def counts(self) -> tuple[int, int, int, int]:
        report = self.shadow.report
        return report.compared, report.changed, report.repeated, report.dropped


def play(scenario, **options) -> None:
    async def scene():
        await scenario(scene := Scene(**options))
        scene.running.cancel()

    run(scene())


def test_while_a_request_waits_or_runs_the_shadow_does_not():
    async def scenario(scene):
        requests = [scene.served.bench.ask_later(number) for number in range(9)]
        await asyncio.sleep(0.5 * TAKES_S)
        scene.served.answered(1, SAME)
        scene.served.answered(2, OTHER)
        await asyncio.gather(*requests)
        assert scene.counts == (0, 0, 0, 0)
        await asyncio.sleep(3 * TAKES_S)
        assert scene.counts == (2, 1, 0, 0)
        assert scene.runner.batches == [[1], [2]]

    play(scenario)


def test_a_request_meets_one_run_at_most():
    async def scenario(scene):
        for number in range(5):
            scene.served.answered(number)
        await asyncio.sleep(0.5 * TAKES_S)  # the first one runs
        with scene.served.admission.admit(1, scene.served.bench.loop.time() + 60):  # decoding
            await asyncio.sleep(10 * TAKES_S)
            assert scene.counts == (1, 0, 0, 0)
        await asyncio.sleep(10 * TAKES_S)
        assert scene.counts == (5, 0, 0, 0)

    play(scenario)


def test_a_batch_that_was_given_up_still_keeps_it_waiting():
    async def scenario(scene):
        request = scene.served.bench.ask_later(0)
        await asyncio.sleep(0.5 * TAKES_S)
        request.cancel()
        scene.served.answered(1)
        await asyncio.sleep(10 * TAKES_S)
        assert scene.counts == (0, 0, 0, 1)

    play(scenario)


@pytest.mark.parametrize(("left_s", "counts"), [(1.9, (0, 0, 0, 1)), (2.1, (1, 0, 0, 0))])
def test_it_does_not_run_where_the_latest_requests_would_have_been_late_for_it(left_s, counts):
    async def scenario(scene):
        [_] = await scene.engine.batcher.run_apart(image(0)[None])  # so long it takes
        scene.served.answered(1, left_s=left_s * TAKES_S)
        await asyncio.sleep(3 * TAKES_S)
        assert scene.counts == counts

    play(scenario)


def test_what_finds_no_room_is_dropped_and_counted():
    async def scenario(scene):
        for number in range(MAX_WAITING + 7):
            scene.served.answered(number)
        assert scene.counts == (0, 0, 0, 7)

    play(scenario)


def test_a_picture_that_comes_again_counts_once():
    async def scenario(scene):
        for number in (1, 2, 1, 1):
            scene.served.answered(number)
        await asyncio.sleep(10 * TAKES_S)
        assert scene.counts == (2, 0, 2, 0)

    play(scenario)


def test_it_takes_its_share_and_the_same_pictures_each_time():
    taken = []

    async def scenario(scene):
        for _ in range(20_000):
            scene.served.answered(0)
        taken.append(scene.counts[3] + MAX_WAITING)

    for _ in range(2):
        play(scenario, share_percent=5.0)
    # Four standard deviations of a binomial count are 123.
    assert taken[0] == taken[1] == pytest.approx(1000, abs=123)


def test_what_waits_is_a_copy():
    async def scenario(scene):
        picture = image(7)
        scene.served.pipeline.on_answer(picture, SAME, 10.0)
        picture[:] = 9  # as memory of a message that is used again
        await asyncio.sleep(2 * TAKES_S)
        assert scene.runner.batches == [[7]]

    play(scenario)


def test_with_another_served_model_it_counts_anew():
    async def scenario(scene):
        scene.served.answered(1, OTHER)
        await asyncio.sleep(2 * TAKES_S)
        scene.served.answered(2, OTHER)
        scene.shadow.follow(newer := Served("newer"))
        scene.served.answered(3, OTHER)  # of a request that the older one had still to answer
        newer.answered(1)
        await asyncio.sleep(10 * TAKES_S)
        assert scene.counts == (1, 0, 0, 0)
        assert scene.shadow.report.model_id == "newer"
        assert scene.runner.batches == [[1], [1]]

    play(scenario)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"classes": CLASSES[::-1]}, "has other classes; expected those of the served bundle"),
        ({"preprocess": Preprocess(resize=80, crop=75)}, "is for preprocessing .*; expected "),
    ],
)
def test_it_follows_no_model_that_it_cannot_be_compared_with(description, message):
    async def scenario(scene):
        with pytest.raises(UsageError, match=f"--shadow other.bundle: {message}"):
            scene.shadow.follow(Served(**description))

    play(scenario)


def test_an_engine_that_fails_ends_it_with_one_line(caplog):
    async def scenario(scene):
        scene.runner.fails = lambda numbers: True
        scene.served.answered(1)
        assert not await scene.running
        assert scene.shadow.report.state == "off"
        assert scene.counts == (0, 0, 0, 0)

    play(scenario)
    [line] = caplog.messages
    assert line == "shadow_failed shadow=shadow error=fake: was told to fail"


async def compare(scene: Scene, numbers: range, best: int = SAME) -> None:
    """Let pictures be answered one by one, each as soon as the one before was compared."""
    for number in numbers:
        scene.served.answered(number, best)
        await asyncio.sleep(1.01 * TAKES_S)


@pytest.mark.parametrize("options", [{}, {"promote_after": 29}])
def test_it_is_promoted_when_enough_pictures_agree_and_only_if_asked_for(options, caplog):
    caplog.set_level("INFO")

    async def scenario(scene):
        await compare(scene, range(28))
        assert not scene.running.done()
        await compare(scene, range(28, 40))
        assert scene.running.done() == bool(options)
        assert scene.shadow.report.state == ("promoting" if options else "comparing")
        assert scene.counts[0] == (29 if options else 40)

    play(scenario, max_disagreement_points=10.0, **options)
    assert len(caplog.messages) == len(options)


def test_too_few_pictures_are_judged_again_at_twice_as_many(caplog):
    caplog.set_level("INFO")

    async def scenario(scene):
        await compare(scene, range(1), OTHER)
        await compare(scene, range(1, 59))
        assert scene.running.done()
        assert scene.counts == (58, 1, 0, 0)

    play(scenario, max_disagreement_points=10.0, promote_after=29)
    first, second = caplog.messages
    assert "too few images: 1 of 29 answers differ" in first
    assert first.endswith("looks again at 58")
    assert "passed: 1 of 58 answers differ" in second


def test_one_that_disagrees_says_so_once_and_goes_on_counting(caplog):
    caplog.set_level("INFO")

    async def scenario(scene):
        await compare(scene, range(70), OTHER)
        assert not scene.running.done()
        assert scene.counts == (70, 70, 0, 0)

    play(scenario, max_disagreement_points=10.0, promote_after=29)
    [line] = caplog.messages
    assert "failed: 29 of 29 answers differ from the served model's" in line
