"""A bundle described for people: where it comes from, what it holds, whether it is whole."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from tabulate import tabulate

from irv2.bundle import Bundle
from irv2.errors import BundleError
from irv2.manifest import (
    MANIFEST,
    SIGNATURE,
    Artifact,
    Evidence,
    Imported,
    Invariance,
    Source,
    read_manifest,
)
from irv2.system.text import first_few, one_line

_ARTIFACT_HEADERS = (
    "artefact",
    "precision",
    "verdict",
    "images",
    "top-1:\nlost, gained",
    "top-5:\nlost, gained",
    "tolerances,\npoints",
    "batches",
    "ran on",
    "images/s",
    "made by",
)


@dataclass(frozen=True, slots=True)
class Inspection:
    """A bundle, and what is wrong with each of its files; empty if the hash holds."""

    bundle: Bundle
    checked: dict[Path, str]
    signer: str = ""  # as the signature says; empty where there is none
    is_proven: bool = False  # that it was this signer
    signature_error: BundleError | None = None

    @property
    def problems(self) -> dict[Path, str]:
        """Only what is wrong."""
        return {path: problem for path, problem in self.checked.items() if problem}

    def require_whole(self) -> None:
        """Raise BundleError for the first file that is wrong, or a signature that is."""
        for file, problem in self.problems.items():
            raise BundleError(file, problem, way_out=self.bundle.way_out(file))
        if self.signature_error:
            raise self.signature_error

    def to_json(self) -> dict[str, Any]:
        """bundle.json, with sizes and problems."""
        return {
            "bundle": str(self.bundle.path),
            **msgspec.to_builtins(self.bundle.manifest),
            "sizes_bytes": {
                artifact.file: self._size_bytes(artifact)
                for artifact in self.bundle.manifest.artifacts
            },
            "problems": {str(path): problem for path, problem in self.problems.items()},
            "signature": {
                "signer": self.signer,
                "proven": self.is_proven,
                "problem": str(self.signature_error or ""),
            },
        }

    def facts(self) -> list[tuple[str, str]]:
        """What the bundle is, where it comes from and whether it is whole: names and values."""
        manifest, preprocess = self.bundle.manifest, self.bundle.preprocess
        source, classes = manifest.source, manifest.classes
        shown = first_few([one_line(name) for name in classes])
        machines = {artifact.built_with.get("machine", "") for artifact in manifest.artifacts}
        return [
            ("id", manifest.id),
            ("checkpoint", f"sha256 {source.checkpoint_sha256}"),
            ("network", f"{source.arch}, setting {source.setting}, epoch {source.epoch}"),
            *origins(source),
            ("made on", "; ".join(sorted(machines))),
            ("classes", f"{len(classes)}: {shown}"),
            (
                "preprocess",
                f"shorter side {preprocess.resize}, centre {preprocess.crop} pixels, "
                f"{preprocess.resampling}, orientation {preprocess.orientation}, "
                f"sha256 {preprocess.sha256[:12]}",
            ),
            *[("calibration", line) for line in _calibration(manifest.artifacts)],
            ("hashes", "all hold" if not self.problems else f"{len(self.problems)} wrong"),
            ("signature", self._signature_text()),
        ]

    def to_text(self) -> str:
        """For a terminal."""
        facts = [("bundle", one_line(self.bundle.path)), *self.facts()]
        artifacts = [row for each in self.bundle.artifacts for row in _artifact_rows(each)]
        files = [self._file_row(path, problem) for path, problem in self.checked.items()]
        return "\n\n".join(
            [
                tabulate(facts, tablefmt="plain", disable_numparse=True),
                tabulate(artifacts, _ARTIFACT_HEADERS, disable_numparse=True),
                tabulate(files, ("file", "MB", "sha256", "state"), disable_numparse=True),
            ]
        )

    def _signature_text(self) -> str:
        if self.signature_error is not None:
            return f"{one_line(self.signer) or 'unknown signer'}, DOES NOT HOLD"
        if not self.signer:
            return "none"
        how = "holds" if self.is_proven else "its files match; who it was needs --require-signature"
        return f"{one_line(self.signer)}, {how}"

    def _file_row(self, path: Path, problem: str) -> tuple[str, ...]:
        manifest, name = self.bundle.manifest, str(path.relative_to(self.bundle.path))
        hashes = {artifact.file: artifact.sha256 for artifact in manifest.artifacts}
        hashes |= manifest.files | {MANIFEST: manifest.sha256}
        size = f"{path.stat().st_size / 1e6:.3f}" if path.is_file() else ""
        return name, size, hashes[name][:12], problem or "ok"

    def _size_bytes(self, artifact: Artifact) -> int | None:
        path = self.bundle.path / artifact.file
        return path.stat().st_size if path.is_file() else None


def origins(source: Source) -> Iterator[tuple[str, str]]:
    """Where the checkpoint's weights came from, the latest step first."""
    if source.imported is not None:
        yield "imported", _imported(source.imported)
    if (before := source.begun_from) is not None:
        step = f"setting {before.setting}, epoch {before.epoch}"
        yield "begun from", f"a checkpoint of {step}, sha256 {before.checkpoint_sha256}"
        yield from origins(before)


def _imported(weights: Imported) -> str:
    line = f"{one_line(weights.file)}, {weights.kind}, sha256 {weights.sha256}"
    if not weights.repository:
        return line
    place = f"{weights.hub}/{weights.repository}, revision {weights.revision}"
    return f"{line}; from {place}, licence {one_line(weights.license or 'not stated')}"


def _artifact_rows(artifact: Artifact) -> Iterator[tuple[str, ...]]:
    """One per backend and kind of processor that it was judged on."""
    made_by = _made_by(artifact)
    if not artifact.known:
        batches = batches_held(artifact, None)
        unknown = ("not verified", "", "", "", "", batches, "", "")
        yield (artifact.file, artifact.precision, *unknown, made_by)
    for row in artifact.known:
        yield (artifact.file, artifact.precision, *_evidence_cells(artifact, row), made_by)


def _evidence_cells(artifact: Artifact, row: Evidence) -> tuple[str, ...]:
    parity = row.parity
    basis = " (identical)" if parity.basis == "identical" else ""
    chance = ",\ncheckpoint at chance" if parity.at_chance else ""
    return (
        parity.verdict.replace("_", " ") + basis + chance,
        str(parity.n),
        f"{parity.top1.lost}, {parity.top1.gained}",
        f"{parity.top5.lost}, {parity.top5.gained}",
        f"{parity.top1.tolerance_points:g}, {parity.top5.tolerance_points:g}",
        batches_held(artifact, row.invariance),
        row.ran_on,
        "" if row.images_per_s is None else f"{row.images_per_s:g}",
    )


def batches_held(artifact: Artifact, found: Invariance | None) -> str:
    """In which batches an image keeps its answer, as far as that was tried."""
    if found is None:
        return f"to {artifact.max_batch}, not tried"
    if found.changed:
        return f"answers change from {found.first_changed_batch} on"
    return f"1 to {artifact.max_batch}"


def _made_by(artifact: Artifact) -> str:
    """What decides where it runs: the engine's library and GPU, else the exporter."""
    made_by = f"{artifact.format} {artifact.built_with.get(artifact.format, '')}"
    return f"{made_by} for {artifact.gpu}" if artifact.gpu else made_by


def _calibration(artifacts: list[Artifact]) -> list[str]:
    """Of int8, where there is any: both files have the same."""
    made_with = [a.built_with for a in artifacts if "calibration_method" in a.built_with]
    return [
        f"{record['calibration_images']} images, {record['calibration_method']}, seed "
        f"{record['calibration_seed']}; blocks in float32: {record['float32_blocks']}"
        for record in made_with[:1]
    ]


def inspect_bundle(path: Path, trusted: Path | None = None) -> Inspection:
    """Read a bundle, check every hash and, for the keys in `trusted`, who signed it.

    Raises BundleError if bundle.json can't be read, UsageError for such a `trusted`.
    """
    bundle = Bundle(path, read_manifest(path / MANIFEST))
    checked = dict(bundle.check())
    if trusted is None and not (path / SIGNATURE).is_file():
        return Inspection(bundle, checked)
    from irv2.trust.check import require_signature
    from irv2.trust.keys import read_trusted, signer_of
    from irv2.trust.signature import read_signature

    believed, signer = read_trusted(trusted) if trusted else None, ""
    try:
        if signature := read_signature(path):
            signer = signer_of(signature)
        if believed:
            require_signature(bundle, believed)
        elif signature:
            signature.check_files(bundle)
    except BundleError as error:
        return Inspection(bundle, checked, signer, signature_error=error)
    return Inspection(bundle, checked, signer, is_proven=believed is not None)
