"""The folders that a report is about: runs of irv2-train, and bundles."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irv2.bundle import Bundle
from irv2.errors import DataError, InputError
from irv2.ledger import Ledger
from irv2.manifest import MANIFEST, REFERENCE, Artifact, Evidence
from irv2.measures.curve import METRICS, Curve, read_run_curve
from irv2.system.files import file_sha256
from irv2.trust.inspection import Inspection, inspect_bundle

CONFIG = "config.json"
CHECKPOINTS = ("best.pt", "best-ema.pt", "last.pt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run's folder: what it was started with, its errors, and the hashes of its checkpoints."""

    name: str
    curve: Curve
    config: dict[str, dict[str, Any]]  # recipe, data and machine, as far as they are there
    checkpoints: dict[str, str]  # file -> sha256

    def files_with(self, sha256: str) -> list[str]:
        """Return its checkpoints with this hash."""
        return [file for file, found in self.checkpoints.items() if found == sha256]


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A bundle, found whole."""

    name: str
    inspection: Inspection

    @property
    def bundle(self) -> Bundle:
        """The bundle itself."""
        return self.inspection.bundle

    @property
    def reference(self) -> Ledger | None:
        """The checkpoint's answers, if the bundle has them."""
        return self._ledger(REFERENCE)

    def answers(self, artifact: Artifact, evidence: Evidence) -> Ledger | None:
        """Return the answers that a row of evidence is about, if the bundle has them."""
        return self._ledger(artifact.ledger(evidence))

    def _ledger(self, file: str) -> Ledger | None:
        known = file in self.bundle.manifest.files
        return Ledger.load(self.bundle.path / file) if known else None


@dataclass(frozen=True, slots=True)
class Sources:
    """All that a report is about, in the order given."""

    runs: list[Run]
    bundles: list[Published]

    @property
    def checkpoints(self) -> list[str]:
        """The hashes of the checkpoints that the bundles were made from."""
        return [each.bundle.manifest.source.checkpoint_sha256 for each in self.bundles]


def read_sources(paths: Sequence[Path], trusted: Path | None = None) -> Sources:
    """Read runs and bundles; signatures are checked against the keys in `trusted`.

    Raises InputError for a folder that is neither, DataError and BundleError for a damaged one.
    """
    found = Sources([], [])
    names = [path.absolute().name for path in paths]
    for path, name in zip(paths, names, strict=True):
        title = name if names.count(name) == 1 else str(path)
        if (path / MANIFEST).is_file():
            inspection = inspect_bundle(path, trusted)
            inspection.require_whole()
            found.bundles.append(Published(name=title, inspection=inspection))
        elif (path / METRICS).is_file() or (path / CONFIG).is_file():
            found.runs.append(_read_run(path, title))
        else:
            raise InputError(
                path,
                f"neither a run nor a bundle: no {METRICS}, {CONFIG} or {MANIFEST} in it",
                "a folder that irv2-train or irv2-export left",
            )
    return found


def _read_run(path: Path, name: str) -> Run:
    places = {file: path / file for file in CHECKPOINTS}
    return Run(
        name=name,
        curve=read_run_curve(path),
        config=_read_config(path / CONFIG),
        checkpoints={f: file_sha256(place) for f, place in places.items() if place.is_file()},
    )


def _read_config(path: Path) -> dict[str, dict[str, Any]]:
    """Read the parts of config.json that are objects; none where there is no file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:  # bad JSON or bad UTF-8
        raise DataError(path, "is not JSON", "the configuration of a run") from error
    if not isinstance(found, dict) or not isinstance(found.get("recipe"), dict):
        raise DataError(path, "has no recipe", "the configuration of a run")
    return {key: value for key, value in found.items() if isinstance(value, dict)}
