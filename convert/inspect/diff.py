"""The answers that `irv2 diff` compares, by the name that the user gave.

A model is named as BUNDLE (its float32 ONNX model), BUNDLE:FILE (another artefact),
BUNDLE:reference (the checkpoint) or LEDGER.npz (what `irv2 eval --ledger` wrote). Only a
CHECKPOINT.pt is run, once per images.
"""

from pathlib import Path

from irv2.bundle import Bundle
from irv2.data.dataset import open_split
from irv2.data.samples import resolve_data
from irv2.errors import BundleError
from irv2.ledger import Ledger
from irv2.manifest import LEDGER_SUFFIX, ONNX_FILE, REFERENCE
from irv2.measures.difference import ModelLedger


def load_model_ledger(name: str, data: Path | None = None) -> ModelLedger:
    """Read the answers that `name` stands for; a checkpoint first answers `data`/val.

    Raises BundleError, or CheckpointError if a file is neither ledger nor checkpoint.
    """
    if name.endswith(".npz"):
        return ModelLedger(name=name, ledger=Ledger.load(Path(name)), classes=[])
    path, artifact = Path(name), ONNX_FILE
    if path.is_file():
        return _ask_checkpoint(path, resolve_data(data))
    if not path.is_dir() and ":" in name:
        folder, artifact = name.rsplit(":", 1)
        path = Path(folder)
    bundle = Bundle.open(path)
    files = [each for each in bundle.manifest.files if each.endswith(LEDGER_SUFFIX)]
    known = {each.removesuffix(LEDGER_SUFFIX): each for each in files}
    first = {each.file: each.ledger(each.known[0]) for each in bundle.artifacts if each.known}
    known |= {name: file for name, file in first.items() if file in files}
    known["reference"] = REFERENCE
    file = known.get(artifact)
    if file is None:
        raise BundleError(
            path,
            f"no answers of {artifact} in it",
            " or ".join(known),
            "run `irv2 verify` where it can be run",
        )
    return ModelLedger(
        name=f"{path}:{artifact}", ledger=Ledger.load(path / file), classes=bundle.classes
    )


def _ask_checkpoint(path: Path, data: Path) -> ModelLedger:
    # Ledgers alone need no torch.
    from irv2.checkpoint import Checkpoint
    from irv2.convert.gate.reference_cache import classify_with_reference

    checkpoint, sha256 = Checkpoint.load_with_sha256(path)
    checkpoint.require_classifier(path)
    images = open_split(data, "val", checkpoint.classes, bad_images="skip")
    [predictions] = classify_with_reference(checkpoint, sha256, [], images, "skip")
    return ModelLedger(
        name=str(path), ledger=Ledger.from_predictions(predictions), classes=checkpoint.classes
    )
