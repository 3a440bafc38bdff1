"""What an artefact was made from and with: the record that bundle.json keeps of each."""

from collections.abc import Mapping
from pathlib import Path

from irv2 import __version__
from irv2.manifest import Artifact, Format, Precision
from irv2.system.files import file_sha256
from irv2.system.machine import describe_machine


def new_artifact(
    path: Path,
    precision: Precision,
    max_batch: int,
    built_from: str,
    built_with: Mapping[str, str],
    *,
    format: Format = "onnx",
    gpu: str | None = None,
) -> Artifact:
    """The record of a model file that was just written, not yet judged.

    `built_from` is the sha256 of the checkpoint or of the ONNX model that it was made from;
    `built_with` names libraries and settings, to which our version and this machine are added.
    """
    return Artifact(
        file=path.name,
        sha256=file_sha256(path),
        format=format,
        precision=precision,
        max_batch=max_batch,
        built_from=built_from,
        built_with={"irv2": __version__, **built_with, "machine": describe_machine()},
        gpu=gpu,
        parity=None,
    )
