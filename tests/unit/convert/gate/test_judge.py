"""Which artefacts are left out since too few images could judge them."""

from tiny_bundle import passed_parity

from irv2.convert.gate.judge import undecided
from irv2.convert.gate.verdict import Judgement
from irv2.manifest import Artifact


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
