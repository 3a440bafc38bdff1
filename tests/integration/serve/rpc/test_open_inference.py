"""The Open Inference Protocol, by plain stubs and by the client that people have."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from project import ROOT
from serving_site import detail, jpeg, loop_watched, scenario_with
from tiny_bundle import SIDE, write_tiny_bundle

from irv2.bundle import Bundle
from irv2.errors import InvalidRequest
from irv2.inference import open_inference_pb2 as oip
from irv2.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub
from irv2.results import top_k_scores
from irv2.runners.choose import open_best
from irv2.serve.rpc.tensor_models import _packed, input_images, raw_from_bytes
from irv2.v1.classifier_pb2 import ClassifyRequest, Image

PROTO = ROOT / "protos" / "irv2" / "inference" / "open_inference.proto"
IMAGES = np.random.default_rng(0).integers(0, 256, (6, SIDE, SIDE, 3), np.uint8)


@pytest.fixture(scope="module")
def logits(bundle) -> np.ndarray:
    with open_best(bundle.path, bundle.artifacts).runner as runner:
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


class Holding(ThreadPoolExecutor):
    """Runs what the event loop gives to threads; converts typed contents once that is let go."""

    def __init__(self) -> None:
        super().__init__(4)
        self.has_come, self.let_go = threading.Event(), threading.Event()

    def submit(self, work, *args):
        is_held = getattr(work, "args", (None,))[0] is _packed
        return super().submit(self._hold if is_held else work, *([work] if is_held else args))

    def _hold(self, work):
        self.has_come.set()
        assert self.let_go.wait(20)
        return work()


def test_typed_contents_that_are_read_during_a_reload_get_the_new_models_answer(bundle, tmp_path):
    other = Bundle.open(write_tiny_bundle(tmp_path / "other.bundle", seed=1))
    with open_best(other.path, other.artifacts).runner as runner:
        expected = runner.run(IMAGES)

    async def scenario(site):
        held = Holding()
        asyncio.get_running_loop().set_default_executor(held)
        infer = GRPCInferenceServiceStub(site.channel).ModelInfer
        asked = asyncio.ensure_future(infer(infer_request(typed=True), timeout=20))
        await asyncio.to_thread(held.has_come.wait, 20)
        await site.server.reload(other.path)
        held.let_go.set()
        [output] = (await asked).outputs
        found = np.array(output.contents.fp32_contents).reshape(expected.shape)
        np.testing.assert_allclose(found, expected, rtol=1e-5)

    scenario_with(bundle, scenario)


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
            "images",
            "UINT8",
            [-1, SIDE, SIDE, 3],
        )
        assert (logits.name, logits.datatype, list(logits.shape)) == ("logits", "FP32", [-1, 10])
        await site.server.announce_stop()
        assert not (await stub.ServerReady(oip.ServerReadyRequest())).ready

    scenario_with(bundle, scenario)


@pytest.mark.parametrize("names", [("resnet", ""), ("irv2", "2"), ("", "")])
def test_a_model_that_is_not_served_is_not_found_whatever_the_method(bundle, names):
    name, version = names

    async def scenario(site):
        stub = GRPCInferenceServiceStub(site.channel)
        asked = {
            stub.ModelInfer: infer_request(model_name=name, model_version=version),
            stub.ModelMetadata: oip.ModelMetadataRequest(name=name, version=version),
            stub.ModelConfig: oip.ModelConfigRequest(name=name, version=version),
        }
        if name:  # without one, statistics are of all models
            asked[stub.ModelStatistics] = oip.ModelStatisticsRequest(name=name, version=version)
        for method, request in asked.items():
            code, status = await site.refusal(request, method=method)
            assert code is grpc.StatusCode.NOT_FOUND
            assert f"{name!r} version {version!r}; expected 'irv2'" in status.message
        ready = await stub.ModelReady(oip.ModelReadyRequest(name=name, version=version))
        assert not ready.ready

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
        (infer_request(name="input"), "inputs"),
        (oip.ModelInferRequest(model_name="irv2"), "inputs"),
        (infer_request(datatype="FP32"), "inputs[0]"),
        (infer_request(IMAGES[:, 1:]), "inputs[0]"),
        (infer_request(IMAGES[:0]), "inputs[0]"),
        (infer_request(IMAGES[[0] * 21]), "inputs[0]"),
        (infer_request(IMAGES[:1], raw_input_contents=[b"x"]), "raw_input_contents"),
        (infer_request(np.full((1, SIDE, SIDE, 3), 256), typed=True), "inputs[0].contents"),
        (infer_request(outputs=[{"name": "probabilities"}]), "outputs"),
        (infer_request(outputs=[{"name": "logits"}] * 2), "outputs"),
        (infer_request(IMAGES.ravel()), "inputs[0]"),
        (infer_request(inputs=[{"name": "images"}]), "inputs"),
        (infer_request(parameters={"timeout": {"double_param": 1.5}}), "parameters['timeout']"),
        (infer_request(parameters={"timeout": {"string_param": "9"}}), "parameters['timeout']"),
    ],
)
def test_a_wrong_request_names_its_field(bundle, request_, field):
    async def scenario(site):
        stub = GRPCInferenceServiceStub(site.channel)
        code, status = await site.refusal(request_, method=stub.ModelInfer)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        (violation,) = detail(status, error_details_pb2.BadRequest).field_violations
        assert violation.field == field

    scenario_with(bundle, scenario, max_message_bytes=2_000_000)


def crowded(field: str, num: int) -> oip.ModelInferRequest:
    """A correct request but for `num` more of one thing."""
    request = infer_request(IMAGES[:1])
    match field:
        case "inputs":
            request.inputs.extend([oip.ModelInferRequest.InferInputTensor()] * num)
        case "outputs":
            output = oip.ModelInferRequest.InferRequestedOutputTensor(name="logits")
            request.outputs.extend([output] * num)
        case "shape":
            request.inputs[0].shape.extend([1] * num)
        case "raw_input_contents":
            request.raw_input_contents.extend([b""] * num)
    return request


@pytest.mark.parametrize(
    ("field", "num"),
    [
        ("inputs", 400_000),
        ("outputs", 90_000),
        ("shape", 900_000),
        ("raw_input_contents", 400_000),
    ],
)
def test_what_a_message_holds_too_much_of_is_counted_and_not_walked_over(bundle, field, num):
    request = crowded(field, num)  # 0.9 MB

    async def scenario(site):
        stub = GRPCInferenceServiceStub(site.channel)
        async with loop_watched() as longest_s:
            code, status = await site.refusal(request, method=stub.ModelInfer)
            assert longest_s() < 0.2
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        (violation,) = detail(status, error_details_pb2.BadRequest).field_violations
        assert violation.field == field
        assert len(violation.description) < 100

    scenario_with(bundle, scenario)


def asking_for(place: str, name: str) -> oip.ModelInferRequest:
    request = infer_request(outputs=[{"name": "logits"}])
    where = {"": request, "inputs[0].": request.inputs[0], "outputs[0].": request.outputs[0]}
    where[place].parameters[name].int64_param = 1
    return request


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("outputs[0].", "classification"),
        ("outputs[0].", "shared_memory_region"),
        ("inputs[0].", "shared_memory_region"),
        ("", "my_own"),
    ],
)
def test_a_parameter_that_would_change_the_answer_is_refused_by_name(bundle, place, name):
    async def scenario(site):
        stub = GRPCInferenceServiceStub(site.channel)
        code, status = await site.refusal(asking_for(place, name), method=stub.ModelInfer)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        (violation,) = detail(status, error_details_pb2.BadRequest).field_violations
        assert violation.field == f"{place}parameters['{name}']"

    scenario_with(bundle, scenario)


def test_a_timeout_is_kept_and_a_priority_changes_nothing(bundle):
    async def scenario(site):
        stub = GRPCInferenceServiceStub(site.channel)
        request = asking_for("", "priority")
        assert (await stub.ModelInfer(request)).outputs
        site.runner.seconds = 0.5
        request.parameters["timeout"].uint64_param = 100_000  # microseconds
        code, _ = await site.refusal(request, method=stub.ModelInfer)
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED

    scenario_with(bundle, scenario, seconds=0.001)


def test_a_timeout_beyond_the_default_deadline_is_kept_under_load_too(bundle):
    async def scenario(site):
        stub = GRPCInferenceServiceStub(site.channel)
        waiting = stub.ModelInfer(infer_request(IMAGES), timeout=10)  # two batches
        await asyncio.sleep(0.1)
        request = infer_request(IMAGES[:1])
        request.parameters["timeout"].int64_param = 10_000_000  # microseconds
        assert (await stub.ModelInfer(request)).outputs
        assert (await waiting).outputs

    scenario_with(bundle, scenario, seconds=0.3, default_deadline_ms=200)


def test_typed_contents_are_converted_without_holding_up_the_others():
    images = np.repeat(IMAGES, 40, axis=0)  # 4 million numbers: 0.5 s of conversion at once
    whole, cut = infer_request(images, typed=True), infer_request(images, typed=True)
    del cut.inputs[0].contents.uint_contents[-1]

    async def scenario():
        async with loop_watched() as longest_s:
            with pytest.raises(InvalidRequest, match="4049999 elements"):
                await input_images(cut, images.shape[1:], 240)
            np.testing.assert_array_equal(await input_images(whole, images.shape[1:], 240), images)
            assert longest_s() < 0.2

    asyncio.run(scenario())


def test_an_engine_failure_is_one_traceback_however_many_requests_it_costs(bundle, caplog):
    async def scenario(site):
        stub = GRPCInferenceServiceStub(site.channel)
        await stub.ModelInfer(infer_request(IMAGES[:1]))
        site.runner.seconds, site.runner.error = 0.2, RuntimeError("on purpose")
        asked = [stub.ModelInfer(infer_request(IMAGES[:1])) for _ in range(5)]
        for failure in await asyncio.gather(*asked, return_exceptions=True):
            assert failure.code() is grpc.StatusCode.INTERNAL
        assert len(site.runner.sizes) == 3, "one before, one alone, one of four"
        statistics = (await stub.ModelStatistics(oip.ModelStatisticsRequest())).model_stats[0]
        assert statistics.inference_stats.success.count == 1
        assert statistics.inference_stats.fail.count == 5
        assert statistics.inference_stats.fail.ns > 5 * 0.2e9

    scenario_with(bundle, scenario)
    assert [bool(record.exc_info) for record in caplog.records] == [True, True]


def test_too_few_bytes_for_the_shape_are_refused(bundle):
    async def scenario(site):
        request = infer_request()
        request.raw_input_contents[0] = request.raw_input_contents[0][:-1]
        stub = GRPCInferenceServiceStub(site.channel)
        code, _ = await site.refusal(request, method=stub.ModelInfer)
        assert code is grpc.StatusCode.INVALID_ARGUMENT

    scenario_with(bundle, scenario)


def files_request(files: list[bytes], *, typed=False, top_k: int | None = None, **fields):
    tensor = {"name": "files", "datatype": "BYTES", "shape": [len(files)]}
    request = oip.ModelInferRequest(**{"model_name": "irv2-files", "id": "7", **fields})
    request.inputs.add(**tensor)
    if typed:
        request.inputs[0].contents.bytes_contents.extend(files)
    else:
        request.raw_input_contents.append(raw_from_bytes(files))
    if top_k is not None:
        request.parameters["top_k"].int64_param = top_k
    return request


def elements(answer: oip.ModelInferResponse, number: int) -> list[bytes]:
    """The elements of an output of BYTES, raw or typed."""
    if not answer.raw_output_contents:
        return list(answer.outputs[number].contents.bytes_contents)
    raw, found = answer.raw_output_contents[number], []
    while raw:
        size = int.from_bytes(raw[:4], "little")
        found.append(raw[4 : 4 + size])
        raw = raw[4 + size :]
    return found


@pytest.mark.parametrize("typed", [False, True])
def test_pictures_are_answered_as_classify_answers_them_and_a_bad_one_fails_alone(bundle, typed):
    files = [jpeg(0), b"no picture", jpeg(1)]

    async def scenario(site):
        stub = GRPCInferenceServiceStub(site.channel)
        answer = await stub.ModelInfer(files_request(files, typed=typed, top_k=3))
        asked = ClassifyRequest(images=[Image(encoded=file) for file in files], top_k=3)
        results = (await site.stub.Classify(asked)).results
        assert [
            (output.name, output.datatype, list(output.shape)) for output in answer.outputs
        ] == [
            ("classes", "BYTES", [3, 3]),
            ("probabilities", "FP32", [3, 3]),
            ("errors", "BYTES", [3]),
        ]
        assert (answer.model_name, answer.id) == ("irv2-files", "7")
        labels = [[score.label.encode() for score in result.scores] for result in results]
        assert elements(answer, 0) == [*labels[0], b"", b"", b"", *labels[2]]
        if typed:
            found = answer.outputs[1].contents.fp32_contents
        else:
            found = np.frombuffer(answer.raw_output_contents[1], np.float32)
        given = [[score.probability for score in result.scores] or [0] * 3 for result in results]
        np.testing.assert_allclose(np.reshape(found, (3, 3)), given, atol=1e-5)
        assert elements(answer, 2) == [b"", b"NOT_AN_IMAGE", b""]

    scenario_with(bundle, scenario)


def test_top_k_and_outputs_are_chosen_by_the_request(bundle):
    async def scenario(site):
        stub = GRPCInferenceServiceStub(site.channel)
        for top_k, num in [(None, 5), (0, 5), (1, 1), (1000, 10)]:
            answer = await stub.ModelInfer(files_request([jpeg(0)], top_k=top_k))
            assert list(answer.outputs[0].shape) == [1, num]
        names = [{"name": "errors"}, {"name": "classes"}]
        answer = await stub.ModelInfer(files_request([jpeg(0)], outputs=names))
        assert [output.name for output in answer.outputs] == ["errors", "classes"]
        assert elements(answer, 0) == [b""]

    scenario_with(bundle, scenario)


NEGATIVE = files_request([b"x"], top_k=-1)
BEYOND_THE_END = files_request([b"x"])
BEYOND_THE_END.raw_input_contents[0] = b"\x02\0\0\0x"


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (files_request([]), "inputs[0]"),
        (files_request([b"x"] * 21), "inputs[0]"),
        (files_request([b"x"], raw_input_contents=[raw_from_bytes([b"x", b"y"])]), "raw_input"),
        (BEYOND_THE_END, "inputs[0]"),
        (NEGATIVE, "parameters['top_k']"),
        (files_request([b"x"], outputs=[{"name": "logits"}]), "outputs"),
        (files_request([b"x"], outputs=[{"name": "errors"}] * 2), "outputs"),
        (infer_request(model_name="irv2-files"), "inputs[0]"),
        (files_request([b"x"], model_name="irv2"), "inputs[0]"),
        (infer_request(parameters=NEGATIVE.parameters), "parameters['top_k']"),
    ],
)
def test_a_wrong_request_for_pictures_names_its_field(bundle, request_, field):
    async def scenario(site):
        stub = GRPCInferenceServiceStub(site.channel)
        code, status = await site.refusal(request_, method=stub.ModelInfer)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        (violation,) = detail(status, error_details_pb2.BadRequest).field_violations
        assert violation.field.startswith(field)

    scenario_with(bundle, scenario)


def test_pictures_stand_in_the_queue_like_other_requests(bundle):
    async def scenario(site):
        stub = GRPCInferenceServiceStub(site.channel)
        await stub.ModelInfer(files_request([jpeg(0)]))
        site.runner.seconds = 0.3
        waiting = stub.ModelInfer(files_request([jpeg(0)] * 20), timeout=10)
        await asyncio.sleep(0.1)
        code, status = await site.refusal(
            files_request([jpeg(0)] * 20), timeout_s=10, method=stub.ModelInfer
        )
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        detail(status, error_details_pb2.RetryInfo)
        assert (await waiting).outputs

    scenario_with(bundle, scenario, max_queue=20)


# Another process: both sides register the names of the protocol, and one process takes them once.
TRITON_PROGRAM = """
import sys, warnings
warnings.simplefilter("ignore")
import numpy as np
import tritonclient.grpc as triton
with triton.InferenceServerClient(sys.argv[1]) as client:
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("irv2")
    assert "statistics" in client.get_server_metadata().extensions
    assert client.get_model_metadata("irv2").inputs[0].datatype == "UINT8"
    images = np.load(sys.argv[2])
    given = triton.InferInput("images", images.shape, "UINT8")
    given.set_data_from_numpy(images)
    answer = client.infer("irv2", [given], outputs=[triton.InferRequestedOutput("logits")])
    np.save(sys.argv[3], answer.as_numpy("logits"))
    config = client.get_model_config("irv2").config
    assert (config.input[0].name, config.input[0].data_type) == ("images", 2)  # TYPE_UINT8
    assert list(config.input[0].dims) == list(images.shape[1:])
    assert list(config.dynamic_batching.preferred_batch_size) == [4]
    models = client.get_model_repository_index().models
    assert [(m.name, m.state) for m in models] == [("irv2", "READY"), ("irv2-files", "READY")]
    (statistics,) = client.get_inference_statistics("irv2").model_stats
    assert statistics.inference_count == 6  # the warm-up's do not count
    batches = [(each.batch_size, each.compute_infer.count) for each in statistics.batch_stats]
    assert sum(size * count for size, count in batches) == statistics.inference_count
    assert sum(count for _, count in batches) == statistics.execution_count
    assert statistics.inference_stats.success.count == 1
    assert statistics.inference_stats.compute_infer.ns > 0

    assert client.is_model_ready("irv2-files")
    described = client.get_model_metadata("irv2-files")
    assert [(t.name, t.datatype) for t in described.outputs] == [
        ("classes", "BYTES"), ("probabilities", "FP32"), ("errors", "BYTES")
    ]
    config = client.get_model_config("irv2-files").config
    assert (config.input[0].name, list(config.input[0].dims)) == ("files", [-1])
    files = np.array([open(sys.argv[4], "rb").read(), b"no picture"], object)
    given = triton.InferInput("files", files.shape, "BYTES")
    given.set_data_from_numpy(files)
    answer = client.infer("irv2-files", [given], parameters={"top_k": 3})
    assert answer.as_numpy("classes").shape == (2, 3)
    assert answer.as_numpy("classes")[0].tolist() == sys.argv[5].encode().split(b",")
    assert answer.as_numpy("probabilities")[0, 0] > 0
    assert answer.as_numpy("errors").tolist() == [b"", b"NOT_AN_IMAGE"]
    (statistics,) = client.get_inference_statistics("irv2-files").model_stats
    assert (statistics.name, statistics.inference_count) == ("irv2-files", 7)
"""


def test_tritonclient_works_unchanged(bundle, logits, tmp_path):
    async def scenario(site):
        given, found = tmp_path / "images.npy", tmp_path / "logits.npy"
        np.save(given, IMAGES)
        address = site.server.ready_line.split()[1]
        picture = tmp_path / "picture.jpg"
        picture.write_bytes(jpeg(0))
        (result,) = bundle.classify([jpeg(0)], top_k=3)
        labels = ",".join(score.label for score in result.scores)
        command = [
            sys.executable,
            "-c",
            TRITON_PROGRAM,
            address,
            *map(str, (given, found, picture)),
        ]
        command.append(labels)
        await asyncio.to_thread(subprocess.run, command, check=True, timeout=60)
        np.testing.assert_allclose(np.load(found), logits, atol=1e-5)
        assert len(top_k_scores(np.load(found)[0], bundle.classes, 5)) == 5

    scenario_with(bundle, scenario)


def test_every_field_has_the_number_and_type_that_triton_gives_it():
    program = """
import json
from tritonclient.grpc import model_config_pb2, service_pb2
print(json.dumps({
    kind.name: {field.name: [field.number, field.type] for field in kind.fields}
    for module in (service_pb2, model_config_pb2)
    for kind in module.DESCRIPTOR.message_types_by_name.values()
}))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True
    )
    theirs = json.loads(done.stdout)
    for kind in oip.DESCRIPTOR.message_types_by_name.values():
        ours = {field.name: [field.number, field.type] for field in kind.fields}
        assert ours.items() <= theirs[kind.name].items(), kind.name


# The packages are npm's; `make js-client` installs them beside Python's.
NODE = {**os.environ, "NODE_PATH": str(Path(sys.prefix) / "js" / "node_modules")}
NODE_PROGRAM = """
const grpc = require("@grpc/grpc-js"), loader = require("@grpc/proto-loader");
const [address, proto] = process.argv.slice(1);
const { inference } = grpc.loadPackageDefinition(loader.loadSync(proto, { keepCase: true }));
const client = new inference.GRPCInferenceService(address, grpc.credentials.createInsecure());
const images = Buffer.alloc(2 * 75 * 75 * 3, 100);
client.ModelInfer({
  model_name: "irv2",
  inputs: [{ name: "images", datatype: "UINT8", shape: [2, 75, 75, 3] }],
  raw_input_contents: [images],
}, (error, answer) => {
  if (error) { console.error(error); process.exit(1); }
  const logits = new Float32Array(Uint8Array.from(answer.raw_output_contents[0]).buffer);
  console.log(JSON.stringify([...logits]));
  client.close();
});
"""


def node_is_missing() -> str:
    """Why the test can't run; in CI it has to."""
    if os.environ.get("CI"):
        return ""
    if not shutil.which("node"):
        return "node is not installed"
    packages = "require('@grpc/grpc-js'), require('@grpc/proto-loader')"
    done = subprocess.run(["node", "-e", packages], capture_output=True, env=NODE)
    return (
        "@grpc/grpc-js and @grpc/proto-loader are missing: make js-client"
        if done.returncode
        else ""
    )


@pytest.mark.skipif(bool(node_is_missing()), reason=node_is_missing())
def test_a_client_of_grpc_js_works_unchanged(bundle):
    async def scenario(site):
        command = ["node", "-e", NODE_PROGRAM, site.server.ready_line.split()[1], str(PROTO)]
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=60, env=NODE
        )
        assert done.returncode == 0, done.stderr
        found = np.reshape(json.loads(done.stdout), (2, 10))
        with open_best(bundle.path, bundle.artifacts).runner as runner:
            expected = runner.run(np.full((2, SIDE, SIDE, 3), 100, np.uint8))
        np.testing.assert_allclose(found, expected, atol=1e-5)

    scenario_with(bundle, scenario)
