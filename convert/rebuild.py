"""`irv2 verify --rebuild`: a bundle's engines made anew for this machine, from its own ONNX models.

An engine fits one version of its library and one kind of GPU. The models it was made from are in
the bundle, so neither checkpoint nor torch is needed.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from irv2.bundle import Bundle
from irv2.convert.engine.build import choose_flavour, engine_artifact
from irv2.convert.engine.options import EngineOptions
from irv2.convert.gate.report import Report, Show, unseen
from irv2.convert.publish.evidence import forget_rejection, write_rejection
from irv2.convert.publish.replace import (
    folder_beside,
    replace_folder,
    require_replaceable,
    with_own_name,
)
from irv2.convert.verify import open_to_verify, require_same, verify
from irv2.data.dataset import BadImages
from irv2.errors import BundleError, EngineError
from irv2.manifest import LEDGER_SUFFIX, REFERENCE, Artifact
from irv2.runners.choose import open_runner


def build_again(engine: Artifact, model: Artifact, folder: Path) -> Artifact:
    """Build an engine from `model`, in `folder`, with the options that it records."""
    options = EngineOptions.from_record(engine.built_with)
    return engine_artifact(model, folder, choose_flavour(options), options)


def rebuild(
    path: Path,
    data: Path | None,
    bad_images: BadImages = "error",
    show: Show = unseen,
    build: Callable[[Artifact, Artifact, Path], Artifact] = build_again,
) -> Report:
    """Build every engine of the bundle again, judge all, and replace the bundle if it passed.

    The work is done on a copy: if the gate is not met the bundle stays as it was, and the report
    lies in `path`.rejected. `show` gets the report before it is written. Raises
    BundleError if the bundle holds no engine or was replaced meanwhile, EngineError if no engine
    can be built here, or none that could take the place of a verified one.
    """
    path = with_own_name(path)
    old = open_to_verify(path).manifest
    engines = [artifact for artifact in old.artifacts if artifact.format != "onnx"]
    if not engines:
        raise BundleError(path, "holds no engine", "one to build anew", "irv2-export --trt")
    require_replaceable(path)
    ledgers = {engine.ledger(row) for engine in engines for row in engine.known}
    gone = {engine.file for engine in engines} | ledgers
    with folder_beside(path) as folder:
        shutil.copytree(path, folder, dirs_exist_ok=True, ignore=lambda *_: gone)
        models = {model.sha256: model for model in old.artifacts if model.format == "onnx"}
        built = [build(engine, models[engine.built_from], folder) for engine in engines]
        manifest = msgspec.structs.replace(
            old.with_artifacts([*models.values(), *built]),
            files={name: sha256 for name, sha256 in old.files.items() if name not in gone},
        )
        bundle = Bundle(folder, old).with_manifest(manifest)
        for before, after in zip(engines, built, strict=True):
            _require_evidence(bundle, before, after)
        report = verify(folder, data, bad_images, path, show)
        if report.failed:
            paths = [folder / REFERENCE, *folder.glob(f"*{LEDGER_SUFFIX}")]
            write_rejection(report, {path.name: path.read_bytes() for path in paths})
        else:
            require_same(path, old)
            replace_folder(folder, path)
            forget_rejection(path)
    return report


def _require_evidence(bundle: Bundle, before: Artifact, after: Artifact) -> None:
    """Raise EngineError if an engine that can't be judged here would replace one that passed."""
    if before.parity is None or before.parity.verdict != "passed":
        return
    try:
        open_runner(bundle.path / after.file, after, after.format).close()
    except EngineError as error:
        raise EngineError(
            before.file,
            f"passed on {before.parity.ran_on}; a new one by {after.format} can't be "
            f"judged here ({error.what}: {error.got})",
            "a machine that runs it",
            "rebuild there",
        ) from error
