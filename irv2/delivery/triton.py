"""A bundle as a model repository of NVIDIA Triton: a folder for each artefact that has passed.

config.pbtxt is the text form of ModelConfig (model_config.proto in triton-inference-server/common).
Each artefact is for an engine that it was judged on.
"""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

from irv2.bundle import Bundle
from irv2.delivery.passed import passed_on
from irv2.errors import InputError
from irv2.manifest import Artifact, Evidence
from irv2.runners.base import CPU_MAX_BATCH
from irv2.system.files import new_folder, require_new_folder

_LABELS = "labels.txt"
_VERSION = "1"


class _Backend(NamedTuple):
    """What Triton calls an engine, where it runs, and how it names the model's file."""

    platform: str
    kind: str
    file: str


_BACKENDS = {
    "onnxruntime-cpu": _Backend("onnxruntime_onnx", "KIND_CPU", "model.onnx"),
    "onnxruntime-cuda": _Backend("onnxruntime_onnx", "KIND_GPU", "model.onnx"),
    "tensorrt": _Backend("tensorrt_plan", "KIND_GPU", "model.plan"),
}


class _Model(NamedTuple):
    name: str
    artifact: Artifact
    evidence: Evidence

    @property
    def backend(self) -> _Backend:
        return _BACKENDS[self.evidence.backend]

    @property
    def max_batch(self) -> int:
        """The largest batch, as irv2-serve would form it."""
        most = self.artifact.max_batch
        return min(most, CPU_MAX_BATCH) if self.backend.kind == "KIND_CPU" else most


def write_repository(bundle: Bundle, out: Path) -> list[str]:
    """Write a model repository to the new folder `out`, whole or not at all; return its models.

    Raises BundleError if nothing in the bundle has passed on an engine that Triton has.
    """
    require_new_folder(out)
    models = _models(bundle)
    if unfit := [label for label in bundle.classes if "\n" in label]:
        raise InputError(bundle.path, f"class {unfit[0]!r}", "one line, as in Triton's labels")
    sources = [bundle.path / model.artifact.file for model in models]
    with new_folder(out, lambda: sum(path.stat().st_size for path in sources)) as folder:
        for model, source in zip(models, sources, strict=True):
            place = folder / model.name
            (place / _VERSION).mkdir(parents=True)
            shutil.copyfile(source, place / _VERSION / model.backend.file)
            labels = "".join(f"{label}\n" for label in bundle.classes)
            (place / _LABELS).write_text(labels, encoding="utf-8")
            (place / "config.pbtxt").write_text(_config(bundle, model), encoding="utf-8")
    return [model.name for model in models]


def _models(bundle: Bundle) -> list[_Model]:
    """The artefacts that have passed, each on the fastest of Triton's engines where it has."""
    models: dict[str, _Model] = {}
    for artifact, evidence in passed_on(bundle, _BACKENDS):
        name = "-".join(["irv2", *artifact.file.split(".")[1:]])  # model.fp16.onnx
        models.setdefault(name, _Model(name, artifact, evidence))
    return list(models.values())


def _config(bundle: Bundle, model: _Model) -> str:
    size, num_classes = bundle.preprocess.crop, len(bundle.classes)
    parity = model.evidence.parity
    sizes = sorted({1, model.max_batch})
    facts = {
        "irv2_model_id": bundle.id,
        "irv2_judged_on": model.evidence.ran_on,
        "irv2_preprocess": json.dumps(bundle.manifest.preprocess),
    }
    return "\n".join([
        f"# {model.artifact.file}: top-1 error {parity.top1.error:.2f} % on {parity.n} images,",
        f"# {parity.top1.reference_error:.2f} % before the conversion.",
        f"name: {_quoted(model.name)}",
        f"platform: {_quoted(model.backend.platform)}",
        f"max_batch_size: {model.max_batch}",
        "input {",
        '  name: "images"  # RGB, resized and cropped as irv2_preprocess says',
        "  data_type: TYPE_UINT8",
        "  format: FORMAT_NHWC",
        f"  dims: [ {size}, {size}, 3 ]",
        "}",
        "output {",
        '  name: "logits"',
        "  data_type: TYPE_FP32",
        f"  dims: [ {num_classes} ]",
        f"  label_filename: {_quoted(_LABELS)}",
        "}",
        "instance_group {",
        f"  kind: {model.backend.kind}",
        "  count: 1",
        *_profiles(model.artifact),
        "}",
        "dynamic_batching { }",
        *(line for num in sizes for line in _warm_up(num, size)),
        *(
            f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}"
            for key, value in facts.items()
        ),
        "",
    ])  # fmt: skip


def _profiles(artifact: Artifact) -> list[str]:
    """Name all profiles of an engine that has several: Triton would take the first alone."""
    num = len(artifact.built_with.get("profiles", "").split(","))
    return [f"  profile: [ {', '.join(_quoted(str(i)) for i in range(num))} ]"] if num > 1 else []


def _warm_up(num_images: int, size: int) -> list[str]:
    return [
        "model_warmup {",
        f'  name: "{num_images} images"',
        f"  batch_size: {num_images}",
        "  inputs {",
        '    key: "images"',
        f"    value {{ data_type: TYPE_UINT8 dims: [ {size}, {size}, 3 ] zero_data: true }}",
        "  }",
        "}",
    ]


def _quoted(text: str) -> str:
    return json.dumps(text)
