"""A server with a second model on its pictures: what becomes of its requests, and of the second."""

import asyncio
import re

import numpy as np
import pytest
import simplejpeg
from serving_process import replace_bundle
from serving_site import request, scenario_with, until
from signing import key_pair
from tiny_bundle import SIDE, write_tiny_bundle

from irv2.bundle import Bundle
from irv2.errors import BundleError, UsageError
from irv2.images.preprocess import Preprocess
from irv2.inference.open_inference_pb2 import ModelInferRequest
from irv2.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub
from irv2.measures.shadow import ShadowReport
from irv2.serve.options import ShadowOptions
from irv2.trust.keys import read_signer
from irv2.trust.sign import sign
from irv2.v1.classifier_pb2 import ClassifyRequest, Image

BLACK = simplejpeg.encode_jpeg(np.zeros((80, 80, 3), np.uint8))
OTHER_CROP = Preprocess(resize=80, crop=75)


@pytest.fixture
def served(tmp_path) -> Bundle:
    return Bundle.open(write_tiny_bundle(tmp_path / "served.bundle"))


@pytest.fixture
def second(tmp_path):
    """A second bundle, and the options to run it on every picture."""

    def write(promote_after: int | None = None, **tiny) -> ShadowOptions:
        bundle = write_tiny_bundle(tmp_path / "second.bundle", **{"mask": 2.0, **tiny})
        return ShadowOptions(
            bundle=bundle,
            share_percent=100.0,
            promote_after=promote_after,
            max_disagreement_points=50.0,
        )

    return write


def report(site) -> ShadowReport:
    found = ShadowReport.read(site.server.metrics_text().decode())
    assert found
    return found


def test_under_overload_the_shadow_starves_and_every_call_is_answered(served, second):
    async def scenario(site):
        async def keep_asking(client: int):
            for number in range(3):
                response = await site.stub.Classify(request(3 * client + number), timeout=10)
                assert response.model_id == served.id
                assert response.results[0].scores
                compared.append(report(site).compared)

        compared = []
        clients = [asyncio.create_task(keep_asking(client)) for client in range(40)]  # 10 batches
        await asyncio.wait(clients, return_when=asyncio.FIRST_COMPLETED)
        assert compared[-1] == 0
        assert report(site).dropped > 0
        await asyncio.gather(*clients)
        await until(lambda: report(site).compared + report(site).dropped == 120)  # nobody waits now
        assert report(site).compared >= 32

    scenario_with(served, scenario, seconds=0.01, shadow=second())


def test_pictures_that_come_as_tensors_are_compared_too(served, second):
    images = np.random.default_rng(0).integers(0, 256, (6, SIDE, SIDE, 3), np.uint8)
    tensor = ModelInferRequest.InferInputTensor(name="images", datatype="UINT8", shape=images.shape)
    infer = ModelInferRequest(
        model_name="irv2", inputs=[tensor], raw_input_contents=[images.tobytes()]
    )

    async def scenario(site):
        await GRPCInferenceServiceStub(site.channel).ModelInfer(infer)
        await until(lambda: report(site).compared == len(images))

    scenario_with(served, scenario, shadow=second())


def test_a_shadow_that_fails_is_off_and_the_server_goes_on(served, second, caplog):
    async def scenario(site):
        await site.stub.Classify(request(0))
        await until(lambda: report(site).compared == 1)
        black = ClassifyRequest(images=[Image(encoded=BLACK)])
        for _ in range(3):
            response = await site.stub.Classify(black)
            assert response.results[0].scores
            await until(lambda: report(site).state == "off")
        assert report(site).compared == 1
        assert site.server.is_ready

    scenario_with(served, scenario, shadow=second(is_fragile=True))
    [line] = [each for each in caplog.messages if "shadow" in each]
    assert line.startswith("shadow_failed shadow=")


def test_after_a_reload_it_counts_anew_and_is_off_where_it_no_longer_fits(served, second, caplog):
    async def scenario(site):
        await site.stub.Classify(request(0))
        await until(lambda: report(site).compared == 1)
        newer = replace_bundle(served.path, seed=1)
        await site.server.reload(served.path)
        assert (report(site).model_id, report(site).compared) == (newer, 0)
        await site.stub.Classify(request(0))
        await until(lambda: report(site).compared == 1)
        replace_bundle(served.path, preprocess=OTHER_CROP)
        await site.server.reload(served.path)
        assert report(site).state == "off"
        assert (await site.stub.Classify(request(0))).results[0].scores

    scenario_with(served, scenario, shadow=second())
    assert "served bundle's; a picture is prepared once, for both models" in caplog.text


def test_what_was_compared_is_promoted_and_nothing_else(served, second, caplog):
    async def scenario(site):
        compared = report(site).shadow_id
        replace_bundle(shadow.bundle, seed=5)  # by someone who thinks that it is not used yet
        for number in range(10):
            await site.stub.Classify(request(number))
        await until(lambda: report(site).state == "off")
        assert report(site).shadow_id == compared
        assert (await site.stub.Classify(request(0))).model_id == served.id

    shadow = second(promote_after=10)
    scenario_with(served, scenario, shadow=shadow)
    assert re.search(r"second\.bundle: is another bundle by now, \w{12}; expected", caplog.text)


@pytest.mark.parametrize(
    ("tiny", "error", "message"),
    [
        ({"preprocess": OTHER_CROP}, UsageError, r"--shadow \S+second.bundle: is for preproc"),
        ({"verdict": "failed"}, BundleError, "second.bundle: nothing in it can be served here"),
        ({"verdict": None}, BundleError, "second.bundle: nothing in it can be served here"),
    ],
)
def test_a_server_does_not_start_with_a_shadow_that_may_not_run(
    served, second, tiny, error, message
):
    async def scenario(site):
        raise AssertionError("it has started")

    with pytest.raises(error, match=message) as caught:
        scenario_with(served, scenario, shadow=second(**tiny))
    assert caught.value.exit_code == 2


def test_a_required_signature_is_required_of_the_shadow_too(served, second, tmp_path):
    async def scenario(site):
        assert report(site).state == "comparing"

    ours, shadow = key_pair(tmp_path, "ours"), second()
    sign(served.path, read_signer(ours.private))
    required = {"require_signature": ours.public, "shadow": shadow}
    with pytest.raises(BundleError, match=r"second\.bundle: is not signed"):
        scenario_with(served, scenario, **required)
    sign(shadow.bundle, read_signer(ours.private))
    scenario_with(served, scenario, **required)
