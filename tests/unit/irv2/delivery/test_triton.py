"""A model repository that Triton's own schema reads, of what has passed and nothing else."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner
from tiny_bundle import CLASSES, SIDE, judged, with_artifact, write_tiny_bundle

from irv2.bundle import Bundle
from irv2.commands.package import main
from irv2.delivery.triton import write_repository
from irv2.errors import BundleError, InputError

# In a process of its own: Triton's schema and ours for its protocol share names of messages.
READ = """
import json, pathlib, sys
from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig
texts = [pathlib.Path(name).read_text() for name in sys.argv[1:]]
read = [text_format.Parse(text, ModelConfig()) for text in texts]
as_dict = json_format.MessageToDict
print(json.dumps([as_dict(each, preserving_proto_field_name=True) for each in read]))
"""


def configs(repository: Path, *models: str) -> list[dict]:
    """Read the models' configurations with Triton's schema, which refuses what it doesn't know."""
    if not find_spec("tritonclient"):  # not imported here, for the same reason
        pytest.skip("tritonclient is not installed")
    paths = [repository / model / "config.pbtxt" for model in models]
    done = subprocess.run([sys.executable, "-c", READ, *paths], capture_output=True, check=True)
    return json.loads(done.stdout)


def test_tritons_schema_reads_a_repository_whose_model_runs_as_it_says(tmp_path):
    bundle, out = write_tiny_bundle(tmp_path / "tiny.bundle"), tmp_path / "repository"
    command = [str(bundle), str(out), "--for", "triton", "--json"]
    done = CliRunner().invoke(main, command, catch_exceptions=False)
    assert json.loads(done.stdout) == {"folder": str(out), "models": ["irv2-onnx"]}

    model, [config] = out / "irv2-onnx", configs(out, "irv2-onnx")
    assert (config["name"], config["platform"]) == ("irv2-onnx", "onnxruntime_onnx")
    assert config["max_batch_size"] == 8  # as irv2-serve on a CPU; the artefact's is 16
    assert config["dynamic_batching"] == {}
    assert config["instance_group"] == [{"count": 1, "kind": "KIND_CPU"}]
    [images], [logits] = config["input"], config["output"]
    assert (images["data_type"], images["format"]) == ("TYPE_UINT8", "FORMAT_NHWC")
    assert logits["data_type"] == "TYPE_FP32"
    assert (model / logits["label_filename"]).read_text().splitlines() == CLASSES
    facts = {key: value["string_value"] for key, value in config["parameters"].items()}
    assert facts["irv2_model_id"] == Bundle.open(bundle).id
    assert json.loads(facts["irv2_preprocess"])["crop"] == SIDE

    assert (model / "1" / "model.onnx").read_bytes() == (bundle / "model.onnx").read_bytes()
    session = onnxruntime.InferenceSession(model / "1" / "model.onnx")
    assert [warm_up["batch_size"] for warm_up in config["model_warmup"]] == [1, 8]
    for warm_up in config["model_warmup"]:
        given = warm_up["inputs"][images["name"]]
        assert (given["data_type"], given["dims"]) == (images["data_type"], images["dims"])
        batch = np.zeros([warm_up["batch_size"], *map(int, given["dims"])], np.uint8)
        [answer] = session.run([logits["name"]], {images["name"]: batch})
        assert answer.shape == (len(batch), *map(int, logits["dims"]))


def test_only_what_has_passed_on_an_engine_of_tritons_is_written(tmp_path):
    bundle = Bundle.open(write_tiny_bundle(tmp_path / "tiny.bundle"))
    cpu, gpu = judged("onnxruntime-cpu"), judged("onnxruntime-cuda", images_per_s=9.0)
    bundle = with_artifact(bundle, "model.fp16.onnx", cpu, gpu, precision="fp16")
    for file, evidence in (
        ("model.bf16.onnx", judged("openvino-cpu")),
        ("model.int8-cpu.onnx", judged("onnxruntime-cpu", "failed")),
        ("model.fp16.rtx", judged("tensorrt_rtx")),
    ):
        bundle = with_artifact(bundle, file, evidence)
    bundle = with_artifact(
        bundle,
        "model.fp16.plan",
        judged("tensorrt"),
        content=b"an engine",
        format="tensorrt",
        built_with={"profiles": "1:1:1, 2:8:16"},
    )
    names = write_repository(bundle, tmp_path / "out")
    assert sorted(names) == ["irv2-fp16-onnx", "irv2-fp16-plan", "irv2-onnx"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(names)
    half, engine = configs(tmp_path / "out", *sorted(names)[:2])
    assert half["instance_group"] == [{"count": 1, "kind": "KIND_GPU"}]
    assert (engine["platform"], engine["max_batch_size"]) == ("tensorrt_plan", 16)
    assert engine["instance_group"][0]["profile"] == ["0", "1"]
    plan = tmp_path / "out" / "irv2-fp16-plan" / "1" / "model.plan"
    assert plan.read_bytes() == b"an engine"


def test_what_can_not_be_written_is_one_line_and_leaves_nothing(tmp_path):
    failed = Bundle.open(write_tiny_bundle(tmp_path / "failed.bundle", verdict="failed"))
    with pytest.raises(BundleError, match="nothing in it has passed where it is to run"):
        write_repository(failed, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="is there and not empty; expected a new folder"):
        write_repository(failed, failed.path)
