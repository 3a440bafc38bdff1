"""What is opened to be judged, and which artefacts too few images could judge."""

from pathlib import Path

import msgspec
import onnx
import pytest
from tiny_bundle import passed_parity, tiny_model, write_tiny_bundle

from irv2.bundle import Bundle
from irv2.convert.gate.judge import open_artifacts, undecided
from irv2.convert.gate.verdict import Judgement
from irv2.errors import BundleError
from irv2.manifest import Artifact
from irv2.system.files import file_sha256


def test_an_engine_that_is_left_out_with_its_model_says_which():
    fp32, int8, plan, other = (
        Artifact(
            file=file,
            sha256=file,
            format="onnx",
            precision=precision,
            max_batch=1,
            built_from=built_from,
            built_with={},
            gpu=None,
            parity=None,
        )
        for file, precision, built_from in [
            ("model.onnx", "fp32", "checkpoint"),
            ("model.int8-trt.onnx", "int8", "model.onnx"),
            ("model.int8.plan", "int8", "model.int8-trt.onnx"),
            ("model.plan", "fp32", "model.onnx"),
        ]
    )
    judged = {
        fp32.file: Judgement(passed_parity(), "fp32 passed"),
        int8.file: Judgement(passed_parity("too_few_images"), "int8: too few images"),
    }
    assert undecided([fp32, int8, plan, other], judged) == {
        int8.file: "int8: too few images",
        plan.file: "it is made of model.int8-trt.onnx",
    }


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle.open(write_tiny_bundle(tmp_path / "b"))


def with_artifact(bundle: Bundle, **changes: str) -> Bundle:
    [artifact] = bundle.artifacts
    changed = msgspec.structs.replace(artifact, **changes)
    return bundle.with_manifest(bundle.manifest.with_artifacts([changed]))


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_model_that_is_not_the_one_that_was_made_is_not_judged(bundle, when):
    def change() -> None:
        onnx.save(tiny_model(seed=1), bundle.path / "model.onnx")

    if when == "before":
        change()
    with (
        pytest.raises(BundleError, match=r"model\.onnx: sha256 \w+; expected \w+: the file was "),
        open_artifacts(bundle),
    ):
        change()


def test_a_reason_does_not_name_the_folder_in_which_the_candidate_lies(bundle):
    path = bundle.path / "model.onnx"
    path.write_bytes(b"no model")
    with open_artifacts(with_artifact(bundle, sha256=file_sha256(path))) as opened:
        assert opened.reasons.keys() == {"model.onnx"}
    [reason] = opened.reasons.values()
    assert "model.onnx: ONNX Runtime can't load it" in reason
    assert "model.onnx: OpenVINO can't load it (Unable to read the model" in reason
    assert str(bundle.path) not in reason
    assert "\n" not in reason
