"""ONNX Runtime itself opens the package, and runs what has passed."""

import json

import numpy as np
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from tiny_bundle import SIDE, judged, with_artifact, write_tiny_bundle

from irv2.bundle import Bundle
from irv2.commands.package import main
from irv2.delivery.onnxruntime import write_package
from irv2.errors import BundleError

needs_packages = pytest.mark.skipif(
    not hasattr(ort, "ModelPackage"), reason="this ONNX Runtime has no model packages in Python"
)


@needs_packages
def test_onnx_runtime_takes_the_fastest_for_the_machine_and_it_answers_as_in_the_bundle(tmp_path):
    bundle = Bundle.open(write_tiny_bundle(tmp_path / "tiny.bundle", seed=1))
    slower, gpu = judged("onnxruntime-cpu", images_per_s=1.0), judged("onnxruntime-cuda")
    bundle = with_artifact(bundle, "model.fp16.onnx", slower, gpu, precision="fp16")
    model = (bundle.path / "model.onnx").read_bytes()
    fastest = judged("onnxruntime-cpu", images_per_s=9.0)
    bundle = with_artifact(bundle, "model.int8-cpu.onnx", fastest, content=model, precision="int8")
    bundle = with_artifact(bundle, "model.bf16.onnx", judged("openvino-cpu", images_per_s=99.0))

    out = tmp_path / "tiny.ortpackage"
    command = [str(bundle.path), str(out), "--for", "onnxruntime", "--json"]
    done = CliRunner().invoke(main, command, catch_exceptions=False)
    names = ["onnxruntime-cuda", "onnxruntime-cpu"]
    assert json.loads(done.stdout) == {"folder": str(out), "models": names}

    [component] = ort.ModelPackage.open(str(out)).get_info()["components"]
    facts = {
        variant["name"]: json.loads(variant["additional_metadata_json"])["irv2"]
        for variant in component["variants"]
    }
    assert {name: found["precision"] for name, found in facts.items()} == {
        "onnxruntime-cuda": "fp16", "onnxruntime-cpu": "int8",
    }  # fmt: skip
    options = ort.SessionOptions()
    options.add_provider("CPUExecutionProvider", {})
    selected = ort.ModelPackageContext(str(out)).select_component(
        component["name"], ort.ModelPackageOptions(options)
    )
    assert selected.get_selected_variant_name() == "onnxruntime-cpu"
    images = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    [found] = selected.create_session(None).run(["logits"], {"images": images})
    [expected] = ort.InferenceSession(model).run(["logits"], {"images": images})
    np.testing.assert_array_equal(found, expected)


def test_what_has_not_passed_is_one_line_and_leaves_nothing(tmp_path):
    failed = Bundle.open(write_tiny_bundle(tmp_path / "failed.bundle", verdict="failed"))
    with pytest.raises(BundleError, match="nothing in it has passed where it is to run"):
        write_package(failed, tmp_path / "out")
    assert not (tmp_path / "out").exists()
