"""The Open Inference Protocol, by plain stubs and by the client that people have."""

import asyncio
import importlib.util
import subprocess
import sys

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from serving_site import detail, scenario_with
from tiny_bundle import SIDE, write_tiny_bundle

from irv2.bundle import Bundle
from irv2.inference import open_inference_pb2 as oip
from irv2.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub
from irv2.results import top_k_scores
from irv2.runners.choose import open_best

IMAGES = np.random.default_rng(0).integers(0, 256, (6, SIDE, SIDE, 3), np.uint8)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    return Bundle.open(write_tiny_bundle(tmp_path_factory.mktemp("oip") / "tiny.bundle"))


@pytest.fixture(scope="module")
def logits(bundle) -> np.ndarray:
    with open_best(bundle)[1] as runner:
        return runner.run(IMAGES)


def infer_request(
    images: np.ndarray = IMAGES, *, typed=False, name="images", datatype="UINT8", **fields
) -> oip.ModelInferRequest:
    tensor = oip.ModelInferRequest.InferInputTensor(
        name=name, datatype=datatype, shape=images.shape
    )
    request = oip.ModelInferRequest(**{"model_name": "irv2", "id": "7", **fields})
    if typed:
        tensor.contents.uint_contents.extend(images.ravel().tolist())
    else:
        request.raw_input_contents.append(images.tobytes())
    request.inputs.append(tensor)
    return request


def test_live_ready_and_metadata(bundle):
    async def scenario(site):
        stub = GRPCInferenceServiceStub(site.channel)
        assert (await stub.ServerLive(oip.ServerLiveRequest())).live
        assert (await stub.ServerReady(oip.ServerReadyRequest())).ready
        assert (await stub.ModelReady(oip.ModelReadyRequest(name="irv2"))).ready
        assert not (await stub.ModelReady(oip.ModelReadyRequest(name="resnet"))).ready
        assert (await stub.ServerMetadata(oip.ServerMetadataRequest())).name == "irv2"
        model = await stub.ModelMetadata(oip.ModelMetadataRequest(name="irv2", version="1"))
        (images,), (logits,) = model.inputs, model.outputs
        assert (images.name, images.datatype, list(images.shape)) == (
            "images", "UINT8", [-1, SIDE, SIDE, 3],
        )  # fmt: skip
        assert (logits.name, logits.datatype, list(logits.shape)) == ("logits", "FP32", [-1, 10])
        await site.server.announce_stop()
        assert not (await stub.ServerReady(oip.ServerReadyRequest())).ready

    scenario_with(bundle, scenario)


@pytest.mark.parametrize("typed", [False, True])
def test_raw_is_answered_raw_and_typed_typed(bundle, logits, typed):
    async def scenario(site):
        answer = await GRPCInferenceServiceStub(site.channel).ModelInfer(infer_request(typed=typed))
        (output,) = answer.outputs
        raw = b"".join(answer.raw_output_contents)
        found = output.contents.fp32_contents if typed else np.frombuffer(raw, np.float32)
        assert bool(raw) != typed
        assert (answer.id, output.name, list(output.shape)) == ("7", "logits", [6, 10])
        # Six images are split over batches of four, which may round otherwise.
        np.testing.assert_allclose(np.reshape(found, (6, 10)), logits, atol=1e-5)

    scenario_with(bundle, scenario)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (infer_request(model_name="resnet"), "model_name"),
        (infer_request(model_version="2"), "model_name"),
        (infer_request(name="input"), "inputs"),
        (oip.ModelInferRequest(model_name="irv2"), "inputs"),
        (infer_request(datatype="FP32"), "inputs[0]"),
        (infer_request(IMAGES[:, 1:]), "inputs[0]"),
        (infer_request(IMAGES[:0]), "inputs[0]"),
        (infer_request(IMAGES[[0] * 21]), "inputs[0]"),
        (infer_request(IMAGES[:1], raw_input_contents=[b"x"]), "raw_input_contents"),
        (infer_request(np.full((1, SIDE, SIDE, 3), 256), typed=True), "inputs[0].contents"),
        (infer_request(outputs=[{"name": "probabilities"}]), "outputs"),
    ],
)  # fmt: skip
def test_a_wrong_request_names_its_field(bundle, request_, field):
    async def scenario(site):
        stub = GRPCInferenceServiceStub(site.channel)
        code, status = await site.refusal(request_, method=stub.ModelInfer)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        (violation,) = detail(status, error_details_pb2.BadRequest).field_violations
        assert violation.field == field

    scenario_with(bundle, scenario, max_message_bytes=2_000_000)


def test_too_few_bytes_for_the_shape_are_refused(bundle):
    async def scenario(site):
        request = infer_request()
        request.raw_input_contents[0] = request.raw_input_contents[0][:-1]
        stub = GRPCInferenceServiceStub(site.channel)
        code, _ = await site.refusal(request, method=stub.ModelInfer)
        assert code is grpc.StatusCode.INVALID_ARGUMENT

    scenario_with(bundle, scenario)


# Another process: both sides register the names of the protocol, and one process takes them once.
TRITON_PROGRAM = """
import sys, warnings
warnings.simplefilter("ignore")
import numpy as np
import tritonclient.grpc as triton
with triton.InferenceServerClient(sys.argv[1]) as client:
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("irv2")
    assert client.get_model_metadata("irv2").inputs[0].datatype == "UINT8"
    images = np.load(sys.argv[2])
    given = triton.InferInput("images", images.shape, "UINT8")
    given.set_data_from_numpy(images)
    answer = client.infer("irv2", [given], outputs=[triton.InferRequestedOutput("logits")])
    np.save(sys.argv[3], answer.as_numpy("logits"))
"""


@pytest.mark.skipif(
    importlib.util.find_spec("tritonclient") is None, reason="tritonclient is not installed"
)
def test_tritonclient_works_unchanged(bundle, logits, tmp_path):
    async def scenario(site):
        given, found = tmp_path / "images.npy", tmp_path / "logits.npy"
        np.save(given, IMAGES)
        address = site.server.ready_line.split()[1]
        command = [sys.executable, "-c", TRITON_PROGRAM, address, str(given), str(found)]
        await asyncio.to_thread(subprocess.run, command, check=True, timeout=60)
        np.testing.assert_allclose(np.load(found), logits, atol=1e-5)
        assert len(top_k_scores(np.load(found)[0], bundle.classes, 5)) == 5

    scenario_with(bundle, scenario)
