"""From a file of published weights to a checkpoint like the trainer's."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from irv2.checkpoint import Checkpoint
from irv2.convert.importing.compare import Agreement, compare
from irv2.convert.importing.hub import PREFIX, HubFile, fetch
from irv2.convert.importing.recognise import read_weights
from irv2.convert.importing.statements import described_sources, settle
from irv2.convert.importing.weights import CLASSIFIER, PublishedWeights, state_dict_of
from irv2.convert.importing.wrappings import Choice
from irv2.data.imagenet import BACKGROUND, class_names
from irv2.errors import CheckpointError, InputError, UsageError
from irv2.system.files import file_sha256

WITH_BACKGROUND = 1001  # ImageNet's classes behind a background class, as TF-slim trained
NO_CLASSIFIER = "none: a network without its classifier, to begin a fine-tuning with (--init-from)"
NOT_COMPARED = "nothing but names and shapes; --compare FILE.npz compares its answers too"
SETTING = "imported"  # in place of a training setting, in checkpoint and bundle


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportResult:
    """What was recognised and written."""

    source: str
    hub_file: HubFile | None  # what `source` names, if it is no file of this machine
    out: Path
    kind: str
    checkpoint: Checkpoint
    num_matched: int
    background_dropped: bool
    preprocess_from: dict[str, str]  # each parameter's source
    classes_from: str
    notes: tuple[str, ...]
    agreement: Agreement | None

    def to_json(self) -> dict[str, Any]:
        """Plain values for --json."""
        return {
            "out": str(self.out),
            "source": str(self.source),
            "origin": self.hub_file.to_json() if self.hub_file else None,
            "kind": self.kind,
            "arch": self.checkpoint.model.arch,
            "num_matched": self.num_matched,
            "num_parameters": self.num_parameters,
            "num_classes": self.checkpoint.model.num_classes,
            "background_dropped": self.background_dropped,
            "classes_from": self.classes_from,
            "preprocess": self.checkpoint.preprocess.to_json(),
            "preprocess_from": self.preprocess_from,
            "notes": list(self.notes),
            "agreement": self.agreement.to_json() if self.agreement else None,
        }

    @property
    def num_parameters(self) -> int:
        """Trained values, without batch norm's statistics."""
        return sum(
            tensor.numel()
            for name, tensor in self.checkpoint.state_dict.items()
            if name.endswith((".weight", ".bias"))
        )

    def to_text(self) -> str:
        """A few lines for people."""
        config, preprocess = self.checkpoint.model, self.checkpoint.preprocess
        dropped = "; the background class was dropped" if self.background_dropped else ""
        mean, std = (
            " ".join(f"{value:g}" for value in values)
            for values in (preprocess.mean, preprocess.std)
        )
        classes = f"{config.num_classes}, {self.classes_from}"
        agreement = self.agreement
        checked = f"{agreement} ({agreement.file})" if agreement else NOT_COMPARED
        return "\n".join(
            [
                f"{self.source}: {self.kind}, network {config.arch}",
                *([f"  fetched  {self.hub_file}"] if self.hub_file else []),
                f"  matched  {self.num_matched} tensors, none missing, none left over; "
                f"{self.num_parameters:,} parameters",
                f"  classes  {classes if config.num_classes else NO_CLASSIFIER}{dropped}",
                f"  images   shorter side {preprocess.resize}, centre {preprocess.crop}, "
                f"{preprocess.resampling}, orientation {preprocess.orientation}, "
                f"mean {mean}, std {std}",
                f"  said by  {described_sources(self.preprocess_from)}",
                f"  checked  {checked}",
                *(f"  note     {note}" for note in self.notes),
                f"written {self.out}",
            ]
        )


def import_weights(
    source: str,
    out: Path,
    *,
    classes_path: Path | None = None,
    arch: str = "auto",
    keep_background: bool = False,
    choice: Choice = "raw",
    preprocess: Mapping[str, Any] | None = None,
    compare_path: Path | None = None,
) -> ImportResult:
    """Recognise the weights in `source`, match them tensor by tensor, write the checkpoint `out`.

    `source` is a file, or a name for `fetch` that begins with `hf:`. `preprocess` holds parameters
    that overrule what files say. Raises CheckpointError if the weights are not those of a known
    network, InputError for a class file that does not fit, UsageError if `out` can't be written,
    ParityError if the answers are not those in `compare_path`, and what `fetch` raises.
    """
    if not out.absolute().parent.is_dir():
        raise UsageError(
            "--out", f"no folder {out.parent}", "an existing one", f"mkdir -p {out.parent}"
        )
    hub_file = fetch(source, out) if source.startswith(PREFIX) else None
    path = hub_file.path if hub_file else Path(source)
    weights = read_weights(path, choice)
    _check_arch(weights, arch, path)
    dropped = drops_background(weights, keep_background, path)
    classes, classes_from = _classes(weights, classes_path, path, background_dropped=dropped)
    settled, sources = settle(weights.preprocess, weights.statements, preprocess or {}, path)
    state = state_dict_of(weights, path)
    if dropped:
        state |= {name: state[name][1:].clone() for name in CLASSIFIER}
    imported = {
        "file": path.name,
        "sha256": file_sha256(path),
        "kind": weights.kind,
        "weights": choice,
        "classes_from": classes_from,
        "preprocess_from": sources,
        "notes": list(weights.notes),
        **(hub_file.to_json() if hub_file else {}),
    }
    checkpoint = Checkpoint(
        model=replace(weights.config, num_classes=len(classes)),
        state_dict=state,
        classes=classes,
        preprocess=settled,
        setting=SETTING,
        epoch=0,
        step=0,
        recipe={"imported": imported},
    )
    agreement = compare(checkpoint, compare_path) if compare_path else None
    if agreement:
        imported["agreement"] = agreement.to_json()
    checkpoint.save(out)
    return ImportResult(
        source=source,
        hub_file=hub_file,
        out=out,
        kind=weights.kind,
        checkpoint=checkpoint,
        num_matched=len(weights.names),
        background_dropped=dropped,
        preprocess_from=sources,
        classes_from=classes_from,
        notes=weights.notes,
        agreement=agreement,
    )


def _check_arch(weights: PublishedWeights, arch: str, path: Path) -> None:
    if arch not in ("auto", weights.config.arch):
        raise CheckpointError(
            path,
            f"holds weights of {weights.config.arch}",
            arch,
            "two networks bear this name and their weights do not fit each other; leave out --arch",
        )


def drops_background(weights: PublishedWeights, keep: bool, path: Path) -> bool:
    """Whether the first of 1001 classes is the background, and to be dropped."""
    num_classes, names = weights.config.num_classes, weights.classes
    has_background = num_classes == WITH_BACKGROUND and (not names or names[0] == BACKGROUND)
    if keep and not has_background:
        got = f"{path} has {num_classes} classes" + (f", the first {names[0]}" if names else "")
        raise UsageError("--keep-background", got, f"{WITH_BACKGROUND}, the first a background")
    return has_background and not keep


def _classes(
    weights: PublishedWeights, classes_path: Path | None, path: Path, *, background_dropped: bool
) -> tuple[list[str], str]:
    """A name for each class, and where they are from; raises InputError."""
    num_classes = weights.config.num_classes - background_dropped
    if weights.config.num_classes == 1:
        raise CheckpointError(
            path,
            "its classifier has one output, whose softmax is always 1",
            "an output for each class",
            "train it with two classes",
        )
    if not num_classes:
        if classes_path is not None:
            raise UsageError("--classes", f"{path} has no classifier", "none", "leave it out")
        return [], ""
    if classes_path is None and weights.classes is not None:
        return list(weights.classes[int(background_dropped) :]), f"named by {weights.classes_from}"
    classes = classes_of(num_classes, classes_path, path, background_dropped=background_dropped)
    return classes, f"named by {classes_path.name}" if classes_path else "named as ImageNet's"


def classes_of(
    num_classes: int, classes_path: Path | None, path: Path, *, background_dropped: bool = False
) -> list[str]:
    """A name for each class: from a file, or ImageNet's; raises InputError."""
    if classes_path is not None:
        return _read_classes(classes_path, num_classes, background_dropped)
    names = class_names()
    if num_classes == len(names):
        return names
    if num_classes == WITH_BACKGROUND:
        return [BACKGROUND, *names]
    raise InputError(
        path,
        f"{num_classes} classes, whose names it does not hold",
        f"ImageNet's {len(names)}",
        f"pass --classes FILE, {num_classes} lines",
    )


def _read_classes(path: Path, num_classes: int, background_dropped: bool) -> list[str]:
    try:
        names = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise InputError(path, "is no text in UTF-8", "a class name per line") from error
    if "\0" in "".join(names):
        raise InputError(path, "a name with a NUL byte", "text, a class name per line")
    if len(names) != num_classes or len(set(names)) != len(names) or "" in names:
        has_background = background_dropped and len(names) == num_classes + 1
        raise InputError(
            path,
            f"{len(names)} lines, {len(set(names) - {''})} different names",
            f"{num_classes} different ones, a class per line",
            "leave out the background's or pass --keep-background" if has_background else "",
        )
    return names
