"""The Open Inference Protocol over HTTP, by plain requests and by the client that people have."""

import asyncio
import base64
import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
from http_site import HTTP, ask
from serving_site import jpeg, loop_watched, scenario_with
from tiny_bundle import SIDE

from irv2.errors import EngineError
from irv2.runners.choose import open_best
from irv2.serve.rest.tensors import MAX_VALUES
from irv2.serve.rpc.tensor_models import raw_from_bytes

IMAGES = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
TENSOR = {"name": "images", "datatype": "UINT8", "shape": list(IMAGES.shape)}
INFER, INFER_FILES = "/v2/models/irv2/infer", "/v2/models/irv2-files/versions/1/infer"


@pytest.fixture(scope="module")
def logits(bundle) -> np.ndarray:
    with open_best(bundle.path, bundle.artifacts).runner as runner:
        return runner.run(IMAGES)


def body(**fields) -> bytes:
    return json.dumps(fields).encode()


def binary(raw: bytes, tensor: dict, **fields) -> tuple[bytes, dict[str, str]]:
    """A request with binary data, and the header that says where they begin."""
    tensor = tensor | {"parameters": {"binary_data_size": len(raw)}}
    text = body(inputs=[tensor], **fields)
    return text + raw, {"Inference_Header_Content_Length": str(len(text))}


def files(*pictures: bytes, **fields) -> bytes:
    data = [base64.b64encode(picture).decode() for picture in pictures]
    tensor = {"name": "files", "datatype": "BYTES", "shape": [len(pictures)], "data": data}
    return body(inputs=[tensor], **fields)


def test_health_and_metadata(bundle):
    async def scenario(site):
        for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/irv2-files/ready"):
            assert (await ask(site, path)).status == 200
        server = (await ask(site, "/v2")).json
        assert server == (await ask(site, "/v2/")).json
        assert (server["name"], server["extensions"]) == ("irv2", ["binary_tensor_data"])
        model = (await ask(site, "/v2/models/irv2/versions/1")).json
        assert (model["name"], model["versions"]) == ("irv2", ["1"])
        assert model["inputs"] == [TENSOR | {"shape": [-1, SIDE, SIDE, 3]}]
        assert model["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}]
        for path in ("/v2/models/resnet", "/v2/models/irv2/versions/2/ready"):
            unknown = await ask(site, path)
            assert unknown.status == 404
            assert "expected 'irv2' or 'irv2-files'" in unknown.json["error"]
        assert (await ask(site, "/v2", b"{}")).status == 405
        await site.server.announce_stop()
        assert (await ask(site, "/v2/health/ready")).status == 503
        assert (await ask(site, "/v2/health/live")).status == 200

    scenario_with(bundle, scenario, http=HTTP)


def test_images_are_taken_as_json_or_binary_and_answered_as_asked(bundle, logits):
    async def scenario(site):
        answer = await ask(site, INFER, body(id="7", inputs=[TENSOR | {"data": IMAGES.tolist()}]))
        assert answer.headers["Content-Type"] == "application/json"
        found = answer.json
        assert (found["model_name"], found["model_version"], found["id"]) == ("irv2", "1", "7")
        (output,) = found["outputs"]
        assert (output["name"], output["datatype"], output["shape"]) == ("logits", "FP32", [2, 10])
        np.testing.assert_allclose(np.reshape(output["data"], (2, 10)), logits, atol=1e-5)

        sent, header = binary(
            IMAGES.tobytes(),
            TENSOR,
            outputs=[{"name": "logits", "parameters": {"binary_data": True}}],
        )
        answer = await ask(site, INFER, sent, **header)
        length = int(answer.headers["Inference-Header-Content-Length"])
        (output,) = json.loads(answer.body[:length])["outputs"]
        assert output["parameters"] == {"binary_data_size": 80}
        found = np.frombuffer(answer.body[length:], np.float32).reshape(2, 10)
        np.testing.assert_allclose(found, logits, atol=1e-5)

    scenario_with(bundle, scenario, http=HTTP)


def test_pictures_are_classified_and_a_bad_one_fails_alone(bundle):
    expected = [score.label for score in bundle.classify([jpeg(0)], top_k=3)[0].scores]

    async def scenario(site):
        parameters = {"top_k": 3}
        sent, header = binary(
            raw_from_bytes([jpeg(0), b"no picture"]),
            {"name": "files", "datatype": "BYTES", "shape": [2]},
            parameters=parameters,
        )
        for answer in (
            await ask(site, INFER_FILES, sent, **header),
            await ask(site, INFER_FILES, files(jpeg(0), b"no picture", parameters=parameters)),
        ):
            classes, probabilities, errors = answer.json["outputs"]
            assert (classes["shape"], classes["data"]) == ([2, 3], [*expected, "", "", ""])
            assert probabilities["data"][0] > 0 == probabilities["data"][3]
            assert (errors["shape"], errors["data"]) == ([2], ["", "NOT_AN_IMAGE"])

    scenario_with(bundle, scenario, http=HTTP)


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        (b"", "body: "),
        (b"{", "body: "),
        (b"[]", "body: "),
        (b"[" * 100_000, "body: "),
        (b"[" + b"0," * MAX_VALUES + b"0]", "body: too many values"),
        (body(), "inputs: "),
        (body(inputs=[TENSOR, TENSOR]), "inputs: "),
        (body(inputs=[1]), "inputs[0]: "),
        (body(inputs=[TENSOR]), "inputs[0].data: "),
        (body(inputs=[TENSOR | {"data": [1, 2]}]), "inputs[0]: 2 elements"),
        (body(inputs=[TENSOR | {"data": [256]}]), "inputs[0].data: "),
        (body(inputs=[TENSOR | {"data": [[1], 2]}]), "inputs[0].data: "),
        (body(inputs=[TENSOR | {"data": [], "shape": [1.5]}]), "inputs[0].shape: "),
        (body(inputs=[TENSOR | {"data": [1]}], id=7), "id: "),
        (body(inputs=[TENSOR | {"data": [1]}], id="\ud800"), "body: half of a character"),
        (body(inputs=[TENSOR | {"data": [1]}], parameters={"\ud800": 1}), "body: half of"),
        (b'{"id": ' + b"9" * 5000 + b"}", "body: can't be read"),
        (body(inputs=[TENSOR | {"data": [1]}], parameters={"x": []}), "parameters['x']: "),
        (body(inputs=[TENSOR | {"data": [1]}], parameters={"x": 1}), "parameters['x']: "),
        (body(inputs=[TENSOR | {"data": [1]}], outputs=[{"name": "x"}]), "outputs: "),
        (body(inputs=[TENSOR | {"parameters": {"binary_data_size": 9}}]), "inputs[0]: 0 bytes"),
        (body(inputs=[TENSOR | {"datatype": "BYTES", "data": ["*"]}]), "inputs[0].data[0]: "),
    ],
)
def test_a_wrong_request_names_its_field_and_does_not_hold_up_others(bundle, sent, field):
    async def scenario(site):
        async with loop_watched() as longest_s:
            answer = await ask(site, INFER, sent)
            assert longest_s() < 0.3
        assert answer.status == 400
        assert answer.json["error"].startswith(field)

    scenario_with(bundle, scenario, http=HTTP, max_message_bytes=3_000_000)


@pytest.mark.parametrize("length", ["x", "-1", "1000000", "9" * 5000])
def test_a_wrong_length_of_json_is_refused(bundle, length):
    async def scenario(site):
        answer = await ask(site, INFER, body(), Inference_Header_Content_Length=length)
        assert answer.status == 400
        assert answer.json["error"].startswith("Inference-Header-Content-Length: ")

    scenario_with(bundle, scenario, http=HTTP)


def test_a_timeout_is_kept_and_a_header_that_makes_no_sense_is_refused(bundle):
    async def scenario(site):
        await ask(site, INFER_FILES, files(jpeg(0)))
        site.runner.seconds = 0.5
        late = await ask(site, INFER_FILES, files(jpeg(0)), Request_Timeout_Ms="100")
        assert late.status == 504
        late = await ask(site, INFER_FILES, files(jpeg(0), parameters={"timeout": 100_000}))
        assert late.status == 504
        wrong = await ask(site, INFER_FILES, files(jpeg(0)), Request_Timeout_Ms="soon")
        assert (wrong.status, wrong.json["error"][:20]) == (400, "Request-Timeout-Ms: ")
        wrong = await ask(site, INFER_FILES, files(jpeg(0)), Content_Encoding="gzip")
        assert (wrong.status, wrong.json["error"][:18]) == (400, "Content-Encoding: ")

    scenario_with(bundle, scenario, http=HTTP)


def test_what_the_queue_has_no_room_for_is_told_when_to_come_back(bundle):
    async def scenario(site):
        await ask(site, INFER_FILES, files(jpeg(0)))
        site.runner.seconds = 0.3
        waiting = asyncio.create_task(ask(site, INFER_FILES, files(*[jpeg(0)] * 20)))
        await asyncio.sleep(0.2)
        refused = await ask(site, INFER_FILES, files(jpeg(0)))
        assert (refused.status, refused.headers["Retry-After"]) == (429, "1")
        assert "images are waiting" in refused.json["error"]
        assert (await waiting).status == 200

    scenario_with(bundle, scenario, http=HTTP, max_queue=20)


def test_a_failure_of_the_engine_tells_nothing_about_it(bundle):
    async def scenario(site):
        site.runner.error = EngineError("engine", "fails on purpose")
        answer = await ask(site, INFER, body(inputs=[TENSOR | {"data": IMAGES.tolist()}]))
        assert (answer.status, answer.json) == (500, {"error": "internal error"})

    scenario_with(bundle, scenario, http=HTTP)


TRITON_PROGRAM = """
import sys
import numpy as np
import tritonclient.http as triton
address, given, found, picture, labels = sys.argv[1:]
with triton.InferenceServerClient(address) as client:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("irv2") and client.is_model_ready("irv2-files", "1")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    assert client.get_model_metadata("irv2-files")["inputs"][0]["datatype"] == "BYTES"
    images = np.load(given)
    for is_binary in (True, False):
        tensor = triton.InferInput("images", images.shape, "UINT8")
        tensor.set_data_from_numpy(images, binary_data=is_binary)
        output = triton.InferRequestedOutput("logits", binary_data=is_binary)
        answer = client.infer("irv2", [tensor], outputs=[output], request_id="7")
        assert answer.get_response()["id"] == "7"
        np.save(found, answer.as_numpy("logits"))
    files = np.array([open(picture, "rb").read(), b"no picture"], object)
    tensor = triton.InferInput("files", files.shape, "BYTES")
    tensor.set_data_from_numpy(files)
    answer = client.infer("irv2-files", [tensor], parameters={"top_k": 3}, timeout=5_000_000)
    assert answer.as_numpy("classes")[0].tolist() == labels.encode().split(b",")
    assert answer.as_numpy("probabilities").shape == (2, 3)
    assert answer.as_numpy("errors").tolist() == [b"", b"NOT_AN_IMAGE"]
    try:
        client.infer("resnet", [tensor])
    except triton.InferenceServerException as error:
        assert "expected 'irv2' or 'irv2-files'" in error.message()
    else:
        raise AssertionError
"""


@pytest.mark.skipif(not importlib.util.find_spec("gevent"), reason="tritonclient[http] is missing")
def test_tritonclient_works_unchanged(bundle, logits, tmp_path):
    labels = ",".join(score.label for score in bundle.classify([jpeg(0)], top_k=3)[0].scores)
    given, found, picture = (tmp_path / name for name in ("images.npy", "logits.npy", "a.jpg"))
    np.save(given, IMAGES)
    picture.write_bytes(jpeg(0))

    async def scenario(site):
        arguments = [site.server.description["http"], *map(str, (given, found, picture)), labels]
        command = [sys.executable, "-W", "ignore", "-c", TRITON_PROGRAM, *arguments]
        await asyncio.to_thread(subprocess.run, command, check=True, timeout=60)
        np.testing.assert_allclose(np.load(found), logits, atol=1e-5)

    scenario_with(bundle, scenario, http=HTTP)


KSERVE_PROGRAM = """
import asyncio, sys
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
grpc_address, http_address, picture, labels = sys.argv[1:]
files = np.array([open(picture, "rb").read(), b"no picture"], object)

def request():
    tensor = InferInput("files", [2], "BYTES")
    tensor.set_data_from_numpy(files, binary_data=True)
    return InferRequest("irv2-files", [tensor], request_id="7", parameters={"top_k": 3})

async def main():
    url, rest = f"http://{http_address}", InferenceRESTClient(RESTConfig(protocol="v2"))
    assert await rest.is_server_live(url) and await rest.is_server_ready(url)
    assert await rest.is_model_ready(url, "irv2-files")
    async with InferenceGRPCClient(grpc_address) as client:
        assert await client.is_server_ready() and await client.is_model_ready("irv2-files")
        for answer in (
            await client.infer(request()),
            await rest.infer(url, request(), model_name="irv2-files"),
        ):
            assert answer.id == "7"
            found = {output.name: output.as_numpy() for output in answer.outputs}
            wanted = {"classes": labels.split(","), "errors": ["", "NOT_AN_IMAGE"]}
            for name, expected in wanted.items():
                values = [v.decode() if isinstance(v, bytes) else v for v in found[name].ravel()]
                assert values[:len(expected)] == expected, values
            assert found["probabilities"].shape == (2, 3)

asyncio.run(main())
"""


@pytest.mark.skipif(not importlib.util.find_spec("kserve"), reason="kserve is missing")
def test_clients_of_kserve_work_unchanged(bundle, tmp_path):
    labels = ",".join(score.label for score in bundle.classify([jpeg(0)], top_k=3)[0].scores)
    picture = tmp_path / "a.jpg"
    picture.write_bytes(jpeg(0))

    async def scenario(site):
        addresses = [site.server.description[port] for port in ("listen", "http")]
        arguments = [*addresses, str(picture), labels]
        command = [sys.executable, "-W", "ignore", "-c", KSERVE_PROGRAM, *arguments]
        await asyncio.to_thread(subprocess.run, command, check=True, timeout=60)

    scenario_with(bundle, scenario, http=HTTP)
