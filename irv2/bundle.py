"""A bundle: a folder that is all a server needs, as a chain of custody.

`bundle.json` names every file with its hash and what it was made from, the preprocessing, the
classes and the evidence of the parity gate. Nothing is loaded before every hash was checked.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import msgspec
import numpy as np

from irv2.errors import BundleError, ImageError, InputError
from irv2.images.decode import read_encoded
from irv2.images.preprocess import Preprocess, preprocess, resize_and_crop
from irv2.results import DEFAULT_TOP_K, Result, top_k_scores
from irv2.runners.base import Runner
from irv2.system.files import file_sha256, write_atomically
from irv2.types import ImageSource, UInt8Array, check_rgb

SCHEMA = "irv2.bundle/1"
MANIFEST = "bundle.json"
REPORT = "parity.md"
LEDGER_SUFFIX = ".ledger.npz"  # behind the name of an artefact, its answers
_NO_SHA256 = "0" * 64

Precision = Literal["fp32", "fp16", "bf16", "int8"]
Format = Literal["onnx", "tensorrt", "tensorrt_rtx"]
Verdict = Literal["passed", "failed", "too_few_images"]
ONNX_FILE = "model.onnx"  # in float32, which all others are made from


class ErrorChange(msgspec.Struct, frozen=True, kw_only=True):
    """How top-1 or top-5 changed from the reference to the artefact; errors in percent."""

    reference_error: float
    error: float
    lost: int
    gained: int
    upper_loss_points: float
    tolerance_points: float


class Parity(msgspec.Struct, frozen=True, kw_only=True):
    """The gate's evidence for one artefact (docs/gate.md).

    `agreement` is the percentage of images with the same best class, right or wrong; `ran_on` the
    library and device, `machine` the rest of where it ran.
    """

    verdict: Verdict
    basis: Literal["identical", "interval"]
    n: int
    data_sha256: str
    confidence: float
    agreement: float
    max_abs_logit_diff: float
    ran_on: str
    top1: ErrorChange
    top5: ErrorChange
    machine: str = ""


class AcceptedLoss(msgspec.Struct, frozen=True, kw_only=True):
    """The increase of the error that the gate accepts, and how sure it has to be of it."""

    top1_points: float
    top5_points: float
    confidence: float


class Invariance(msgspec.Struct, frozen=True, kw_only=True):
    """Whether answers depend on the batch that an image is in (docs/gate.md).

    Each of `num_images` was asked alone, then repeated to fill a batch and among the others, in
    batches of every size in `batch_sizes`; `changed` of `num_answers` had another best class.
    """

    batch_sizes: list[int]
    num_images: int
    num_answers: int
    changed: int
    first_changed_batch: int | None  # the smallest batch with a changed answer
    max_probability_diff: float
    ran_on: str


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """One model file. `parity` and `invariance` are None until something could run it."""

    file: str
    sha256: str
    format: Format
    precision: Precision
    max_batch: int
    built_from: str
    built_with: dict[str, str]
    gpu: str | None
    parity: Parity | None
    invariance: Invariance | None = None


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """The checkpoint a bundle was made from."""

    checkpoint_sha256: str
    arch: str
    setting: str
    epoch: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The contents of bundle.json. `sha256` is filled in where it is written."""

    schema: str
    sha256: str = _NO_SHA256  # of bundle.json itself, with these digits as zeros
    id: str
    source: Source
    preprocess: dict[str, Any]
    classes: list[str]
    artifacts: list[Artifact]
    files: dict[str, str]  # evidence beside the models: file -> sha256
    # By precision, as the export was asked to judge: also what could not be run there.
    accepted_loss: dict[Precision, AcceptedLoss] = {}


class _AnyManifest(msgspec.Struct, frozen=True):
    """What every version of bundle.json says, read before the rest."""

    schema: str


class Bundle:
    """A bundle that was opened: its hashes hold and its preprocessing is understood."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        try:
            self.preprocess = Preprocess.from_json(manifest.preprocess, path / MANIFEST)
        except InputError as error:
            raise BundleError(error.what, error.got, error.expected, error.way_out) from error

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Read bundle.json and check every hash; raises BundleError."""
        path = Path(path)
        bundle = cls(path, read_manifest(path / MANIFEST))
        for what, problem in bundle.check():
            if problem:
                raise BundleError(what, problem, way_out=bundle.way_out(what))
        return bundle

    @property
    def id(self) -> str:
        """The identity of models, preprocessing and classes; evidence does not change it."""
        return self.manifest.id

    @property
    def classes(self) -> list[str]:
        """Class names by index."""
        return self.manifest.classes

    def check(self) -> Iterator[tuple[Path, str]]:
        """Each file of the bundle with what is wrong with it, or an empty string."""
        models = [(artifact.file, artifact.sha256) for artifact in self.manifest.artifacts]
        for name, sha256 in [*models, *self.manifest.files.items()]:
            path = self.path / name
            if path.parent != self.path:
                yield path, "lies outside the bundle"
            elif not path.is_file():
                yield path, "is missing"
            else:
                found = file_sha256(path)
                yield (
                    path,
                    ""
                    if found == sha256
                    else (f"sha256 {found[:12]}; expected {sha256[:12]}: the file was changed"),
                )
        yield self.path / MANIFEST, self._manifest_problem()

    def way_out(self, wrong: Path) -> str:
        """How to mend a file of the bundle that is not what its hash says."""
        return f"run `irv2 verify {self.path}`" if is_judged(wrong) else "export it again"

    def _manifest_problem(self) -> str:
        """Last of all, since what is wrong with a part says more than that something is."""
        computed = bundle_id(self.manifest.artifacts, self.manifest.preprocess, self.classes)
        if computed != self.id:
            return f"id {self.id[:12]}; expected {computed[:12]} for its contents"
        content, stated = (self.path / MANIFEST).read_bytes(), self.manifest.sha256
        found = _own_sha256(content.replace(stated.encode(), _NO_SHA256.encode(), 1))
        if found != stated:
            return f"sha256 {found[:12]}; expected {stated[:12]}: the file was changed"
        return ""

    def with_manifest(self, manifest: Manifest) -> "Bundle":
        """Replace bundle.json, whole or not at all."""
        write_atomically(self.path / MANIFEST, manifest_json(manifest))
        return Bundle(self.path, manifest)

    def classify(
        self, images: Sequence[ImageSource], top_k: int = DEFAULT_TOP_K
    ) -> list[Result]:  # fmt: skip
        """Classify paths, encoded bytes or uint8 RGB (H, W, 3) arrays, without a server.

        Uses the artefact that a server on this machine would choose. An image that can't be
        decoded gives a Result with an error; the others are not affected.
        """
        results: list[Result] = []
        for start in range(0, len(images), self._runner.max_batch):
            results += self._classify_batch(images[start : start + self._runner.max_batch], top_k)
        return results

    def _classify_batch(self, images: Sequence[ImageSource], top_k: int) -> list[Result]:
        prepared: dict[int, UInt8Array] = {}
        errors: dict[int, ImageError] = {}
        for i, image in enumerate(images):
            try:
                prepared[i] = prepare(image, self.preprocess)
            except ImageError as error:
                errors[i] = error
        logits = [*self._runner.run(np.stack(list(prepared.values())))] if prepared else []
        scores = {
            i: top_k_scores(row, self.classes, top_k)
            for i, row in zip(prepared, logits, strict=True)
        }
        return [Result(scores.get(i, ()), errors.get(i), self.id) for i in range(len(images))]

    @cached_property
    def _runner(self) -> Runner:
        from irv2.runners.choose import open_best

        return open_best(self)[1]


def prepare(image: ImageSource, config: Preprocess) -> UInt8Array:
    """A path, encoded bytes or a uint8 RGB (H, W, 3) array -> uint8 (crop, crop, 3)."""
    if isinstance(image, bytes):
        return preprocess(image, config)
    if isinstance(image, str | Path):
        try:
            return preprocess(read_encoded(Path(image)), config)
        except ImageError as error:
            raise error.named(image) from error
    check_rgb(image)
    return resize_and_crop(image, config)


def read_manifest(path: Path) -> Manifest:
    """Parse bundle.json; raises BundleError with the place of what is wrong."""
    try:
        content = path.read_bytes()
        schema = msgspec.json.decode(content, type=_AnyManifest).schema
        if schema != SCHEMA:
            raise BundleError(path, f"schema {schema}", SCHEMA, "use the irv2 that wrote it")
        return msgspec.json.decode(content, type=Manifest)
    except FileNotFoundError as error:
        raise BundleError(
            path.parent, f"no {MANIFEST} in it", "a bundle", "make one with irv2-export"
        ) from error
    except (OSError, UnicodeDecodeError, msgspec.MsgspecError) as error:
        raise BundleError(path, str(error), SCHEMA, "export it again") from error


def is_judged(path: Path) -> bool:
    """Whether `irv2 verify` writes this file of a bundle: the report, or a ledger.

    They and bundle.json can't be renamed in one step: a crash in between leaves one that does not
    match, which is written anew.
    """
    return path.name == REPORT or path.name.endswith(LEDGER_SUFFIX)


def manifest_json(manifest: Manifest) -> bytes:
    """bundle.json's bytes, indented for readers, with their own hash inside."""
    unsigned = msgspec.structs.replace(manifest, sha256=_NO_SHA256)
    content = msgspec.json.format(msgspec.json.encode(unsigned), indent=2) + b"\n"
    # The first zeros are its own: only `schema` comes before.
    return content.replace(_NO_SHA256.encode(), _own_sha256(content).encode(), 1)


def _own_sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def bundle_id(artifacts: list[Artifact], preprocess: dict[str, Any], classes: list[str]) -> str:
    """sha256 over model files, preprocessing and classes, without the evidence."""
    models = sorted((artifact.file, artifact.sha256) for artifact in artifacts)
    text = json.dumps([models, preprocess["sha256"], classes])
    return hashlib.sha256(text.encode()).hexdigest()
