"""torch's exporter takes seconds; it gives the same network once more for nothing.

That it would give the same bytes is a test of its own (test_export.py).
"""

import hashlib

import onnx
import pytest
from torch import nn

from irv2.convert.onnx import float32

convert = float32._export  # torch's own work, remembered nowhere


def remember_conversions(patch: pytest.MonkeyPatch) -> None:
    """From here on convert each network once."""
    files: dict[str, bytes] = {}

    def convert_once(network: nn.Module, image_size: int) -> onnx.ModelProto:
        identity = hashlib.sha256(f"{image_size} {network}".encode())
        for tensor in (*network.parameters(), *network.buffers()):
            identity.update(tensor.detach().numpy().tobytes())
        name = identity.hexdigest()
        if name not in files:
            files[name] = convert(network, image_size).SerializeToString()
        return onnx.load_model_from_string(files[name])

    patch.setattr(float32, "_export", convert_once)
