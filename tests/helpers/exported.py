"""What an export of a tiny checkpoint leaves."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from irv2.convert.gate.report import Report
from irv2.system.machine import instruction_set

LEDGERS = {
    f"model.onnx.{backend}.{instruction_set(backend)}.ledger.npz"
    for backend in ("onnxruntime-cpu", "openvino-cpu")
}
# What an export of float32 alone leaves.
BUNDLE_FILES = {
    "bundle.json",
    "model.onnx",
    *LEDGERS,
    "parity.md",
    "reference.npz",
    "selftest.npz",
}


@dataclass(frozen=True)
class Exported:
    """A checkpoint file, the images it knows, and the bundle made of both."""

    data: Path
    checkpoint_path: Path
    bundle: Path
    report: Report


def tree(folder: Path) -> dict[str, str]:
    """Every file below `folder` with its hash."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
