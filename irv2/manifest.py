"""bundle.json: what a bundle says about its files, and the evidence for them.

It lists every model file with its hash and what it was made from, the preprocessing, the classes
and the verdicts of the parity gate. It holds its own hash too.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from irv2.errors import BundleError

SCHEMA = "irv2.bundle/1"
MANIFEST = "bundle.json"
REPORT = "parity.md"
REFERENCE = "reference.npz"  # the answers of the checkpoint
SIGNATURE = "model.sig"  # covers all other files; bundle.json does not name it
LEDGER_SUFFIX = ".ledger.npz"  # appended to an artefact's name for the file of its answers
NO_SHA256 = "0" * 64

Precision = Literal["fp32", "fp16", "bf16", "int8"]
Format = Literal["onnx", "tensorrt", "tensorrt_rtx"]
Verdict = Literal["passed", "failed", "too_few_images"]
PerClass = Literal["fail", "report"]  # what a class that is significantly worse leads to
_Name: TypeAlias = Annotated[str, msgspec.Meta(pattern="^[a-z0-9_-]*$")]  # safe in a file's name
ONNX_FILE = "model.onnx"  # in float32; all others are made from it


class ErrorChange(msgspec.Struct, frozen=True, kw_only=True):
    """The change of top-1 or top-5 from the reference to the artefact; errors in percent."""

    reference_error: float
    error: float
    lost: int
    gained: int
    upper_loss_points: float
    tolerance_points: float


class Disagreement(msgspec.Struct, frozen=True, kw_only=True):
    """Images with another best class than the reference's, right or wrong; limits in percent."""

    changed: int
    upper_points: float
    limit_points: float


class ClassChange(msgspec.Struct, frozen=True, kw_only=True):
    """A class's top-1 change; its one-sided limits hold for all classes at once."""

    label: str
    images: int
    lost: int
    gained: int
    lower_loss_points: float
    upper_loss_points: float


class Parity(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The gate's evidence for one artefact (docs/gate.md).

    `agreement` is the percentage of images with the same best class, right or wrong; `ran_on` is
    the library and device, `machine` describes the machine. What older bundles lack has a default,
    which is not written: so their bytes stay as they are.
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
    disagreement: Disagreement | None = None
    distinct: int | None = None  # pictures of different bytes or label, each counted once: `n`
    copies: int = 0  # images left out, each one of those again
    worst_classes: list[ClassChange] = []
    at_chance: bool = False  # the reference is not shown to be better than guessing


class AcceptedLoss(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the gate accepts, and the confidence it requires; defaults are not written."""

    top1_points: float
    top5_points: float
    confidence: float
    disagreement_points: float | None = None  # None: by precision
    accept_chance: bool = False
    per_class: PerClass = "fail"


class Invariance(msgspec.Struct, frozen=True, kw_only=True):
    """Evidence on whether answers depend on the batch that an image is in (docs/gate.md).

    Each of `num_images` was classified alone, then repeated to fill a batch and among the others,
    in batches of every size in `batch_sizes`; `changed` of `num_answers` had another best class.
    """

    batch_sizes: list[int]
    num_images: int
    num_answers: int
    changed: int
    first_changed_batch: int | None  # the smallest batch with a changed answer
    max_probability_diff: float
    ran_on: str


class Evidence(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the gate found of an artefact on one backend and kind of processor (docs/evidence.md).

    `instruction_set` is the most capable one that the processor has, `threads` the engine's (0 on a
    GPU), `images_per_s` what it classified with them in batches of a server's size.
    """

    backend: _Name
    backend_version: str = ""  # of its library; empty where nobody recorded it
    instruction_set: _Name  # empty in what bundles of before 2026-11-30 say: any
    threads: Annotated[int, msgspec.Meta(ge=0)]
    parity: Parity
    invariance: Invariance | None
    images_per_s: Annotated[float, msgspec.Meta(gt=0)] | None

    @property
    def kind(self) -> tuple[str, str]:
        """What it is evidence for: the backend on processors of this kind."""
        return self.backend, self.instruction_set

    @property
    def ran_on(self) -> str:
        """The kind, with the version of the backend, for people."""
        parts = (self.backend, self.backend_version, self.instruction_set)
        return " ".join(part for part in parts if part)


class Artifact(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One model file. `parity` and `invariance` are None until a machine could run it.

    They are the first row of `evidence`: the exporting machine's best. Defaults are not written.
    """

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
    evidence: list[Evidence] = []

    def __post_init__(self) -> None:
        kinds = [row.kind for row in self.evidence]
        if twice := {" ".join(kind) for kind in kinds if kinds.count(kind) > 1}:
            raise ValueError(f"evidence: {min(twice)} twice, expected one row of a kind")

    @property
    def known(self) -> list[Evidence]:
        """The evidence that counts, in older bundles one row that says nothing of the processor.

        So too if `parity` has not passed and is not the first row's: what wrote it knew no rows.
        """
        if self.parity is None:
            return []
        has_passed = self.parity.verdict == "passed"
        if self.evidence and (has_passed or self.evidence[0].parity == self.parity):
            return self.evidence
        return [
            Evidence(
                backend=self.parity.ran_on,
                instruction_set="",
                threads=0,
                parity=self.parity,
                invariance=self.invariance,
                images_per_s=None,
            )
        ]

    def ledger(self, evidence: Evidence) -> str:
        """The file of the answers that a row of `known` is about."""
        kind = "".join(f".{part}" for part in evidence.kind) if evidence.instruction_set else ""
        return f"{self.file}{kind}{LEDGER_SUFFIX}"


class Imported(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The file of published weights that a checkpoint was imported from.

    Of a file that `irv2 import` fetched, also the address of the hub, the repository there and its
    commit; `license` is what that repository states, empty where nothing is known.
    """

    file: str
    sha256: str
    kind: str
    hub: str = ""
    repository: str = ""
    revision: str = ""
    license: str = ""


class Source(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The checkpoint that a bundle was made from, and where its weights came from before that.

    Either they were imported, or a run began with those of another checkpoint (`--init-from`), or
    with random ones.
    """

    checkpoint_sha256: str
    arch: str
    setting: str
    epoch: int
    imported: Imported | None = None
    begun_from: "Source | None" = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The contents of bundle.json. `sha256` is filled in when it is written."""

    schema: str
    sha256: str = NO_SHA256  # of bundle.json itself, with these digits set to zero
    id: str
    source: Source
    preprocess: dict[str, Any]
    classes: list[str]
    artifacts: list[Artifact]
    files: dict[str, str]  # evidence beside the models: file -> sha256
    # By precision, for all that the export was asked to judge, even if it could not run it.
    accepted_loss: dict[Precision, AcceptedLoss] = {}

    def with_artifacts(self, artifacts: list[Artifact]) -> "Manifest":
        """Return the manifest of the same bundle with other model files and the matching id."""
        identity = bundle_id(artifacts, self.preprocess, self.classes)
        return msgspec.structs.replace(self, artifacts=artifacts, id=identity)


class _AnyManifest(msgspec.Struct, frozen=True):
    """The part common to every version of bundle.json, read before the rest."""

    schema: str


def new_manifest(
    source: Source,
    preprocess: dict[str, Any],
    classes: list[str],
    artifacts: list[Artifact],
    files: dict[str, str],
) -> Manifest:
    """Build the manifest of a new bundle; its id follows from the rest."""
    return Manifest(
        schema=SCHEMA,
        id=bundle_id(artifacts, preprocess, classes),
        source=source,
        preprocess=preprocess,
        classes=classes,
        artifacts=artifacts,
        files=files,
    )


def read_manifest(path: Path) -> Manifest:
    """Parse bundle.json; raises BundleError that says which part is wrong."""
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
    except (OSError, UnicodeDecodeError, RecursionError, msgspec.MsgspecError) as error:
        raise BundleError(path, str(error), SCHEMA, "export it again") from error


def is_judged(path: Path) -> bool:
    """Whether `irv2 verify` writes this file of a bundle: the report, or a ledger.

    These and bundle.json can't be renamed in one step: a crash in between leaves a file that does
    not match, which `irv2 verify` rewrites.
    """
    return path.name == REPORT or path.name.endswith(LEDGER_SUFFIX)


def manifest_json(manifest: Manifest) -> bytes:
    """Return bundle.json's bytes, indented for readers, with their own hash inside."""
    unsigned = msgspec.structs.replace(manifest, sha256=NO_SHA256)
    content = msgspec.json.format(msgspec.json.encode(unsigned), indent=2) + b"\n"
    # The first zeros are its own: only `schema` comes before.
    return content.replace(NO_SHA256.encode(), own_sha256(content).encode(), 1)


def own_sha256(content: bytes) -> str:
    """Hash bundle.json's bytes whose own hash is NO_SHA256 (hex sha256)."""
    return hashlib.sha256(content).hexdigest()


def bundle_id(
    artifacts: list[Artifact],
    preprocess: dict[str, Any],
    classes: list[str],
    *,
    with_engine_bytes: bool = False,
) -> str:
    """Hash model files, preprocessing and classes, without the evidence (hex sha256).

    No two builds of an engine have the same bytes, so it counts by the model that it was built
    from. In bundles made before 2026-11-30 it counted by its bytes, as with `with_engine_bytes`.
    """
    models = sorted(
        (a.file, a.sha256 if a.format == "onnx" or with_engine_bytes else a.built_from)
        for a in artifacts
    )
    text = json.dumps([models, preprocess["sha256"], classes])
    return hashlib.sha256(text.encode()).hexdigest()
