"""A bundle as a model package of ONNX Runtime (1.29 and later), which takes what fits a machine.

A variant for each execution provider: the fastest artefact that has passed on it. The format is
that of microsoft/onnxruntime, model_package/; ONNX Runtime refuses what it doesn't know in it.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from irv2 import __version__
from irv2.bundle import Bundle
from irv2.delivery.passed import passed_on
from irv2.manifest import Artifact, Evidence
from irv2.system.files import new_folder, require_new_folder

_PROVIDERS = {
    "onnxruntime-cuda": ("CUDAExecutionProvider", "gpu"),
    "onnxruntime-cpu": ("CPUExecutionProvider", "cpu"),
}
_COMPONENT, _MODEL = "classifier", "model.onnx"


def write_package(bundle: Bundle, out: Path) -> list[str]:
    """Write a model package to the new folder `out`, whole or not at all; return its variants.

    Raises BundleError if nothing in the bundle has passed on ONNX Runtime.
    """
    require_new_folder(out)
    passed = passed_on(bundle, _PROVIDERS)
    fastest = {row.backend: (artifact, row) for artifact, row in reversed(passed)}
    # ONNX Runtime takes the first that it can run.
    variants = {name: fastest[name] for name in _PROVIDERS if name in fastest}
    sources = {name: bundle.path / artifact.file for name, (artifact, _) in variants.items()}
    num_bytes = sum(source.stat().st_size for source in sources.values())
    with new_folder(out, lambda: num_bytes) as folder:
        place = folder / "models" / _COMPONENT
        for name, source in sources.items():
            (place / name).mkdir(parents=True)
            shutil.copyfile(source, place / name / _MODEL)
        _write(place / "component.json", {
            "variants": {name: _variant(*found) for name, found in variants.items()}
        })  # fmt: skip
        _write(folder / "manifest.json", _manifest(bundle))
    return list(variants)


def _manifest(bundle: Bundle) -> dict[str, Any]:
    facts = {"preprocess": bundle.manifest.preprocess, "classes": bundle.classes}
    return {
        "schema_version": "1.0",
        "package_name": bundle.manifest.source.arch,
        "package_version": bundle.id,
        "components": {_COMPONENT: f"models/{_COMPONENT}"},
        "additional_metadata": {"producer": f"irv2 {__version__}", "irv2": facts},
    }


def _variant(artifact: Artifact, evidence: Evidence) -> dict[str, Any]:
    provider, device = _PROVIDERS[evidence.backend]
    facts = {
        "precision": artifact.precision,
        "sha256": artifact.sha256,
        "judged_on": evidence.ran_on,
        "num_images": evidence.parity.n,
        "top1_error": evidence.parity.top1.error,
    }
    return {
        "ep": provider,
        "device": device,
        "executor_info": {"ort": {"model_file": _MODEL}},
        "additional_metadata": {"irv2": facts},
    }


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
