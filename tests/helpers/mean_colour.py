"""The model on which `irv2 doctor` tries backends: each image's mean red, green and blue.

`python tests/helpers/mean_colour.py` writes irv2/doctor/mean_colour.onnx; a test compares.
"""

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper
from project import ROOT

PATH = ROOT / "irv2" / "doctor" / "mean_colour.onnx"
SIDE = 16


def mean_colour() -> ModelProto:
    """uint8 `images` (N, 16, 16, 3) -> float32 `logits` (N, 3), by a convolution and a mean."""
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["nchw", "same"], ["convolved"], kernel_shape=[1, 1]),
        helper.make_node("GlobalAveragePool", ["convolved"], ["means"]),
        helper.make_node("Flatten", ["means"], ["logits"]),
    ]
    same = np.eye(3, dtype=np.float32)[:, :, None, None]
    graph = helper.make_graph(
        nodes,
        "mean_colour",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(same, "same")],
    )
    # Versions that every supported runtime reads (docs/exported-files.md).
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8, producer_name="irv2"
    )


if __name__ == "__main__":
    PATH.write_bytes(mean_colour().SerializeToString())
