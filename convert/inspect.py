"""What a bundle is, for a reader: where it comes from, what it holds, whether it is whole."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from tabulate import tabulate

from irv2.bundle import MANIFEST, Artifact, Bundle, read_manifest


@dataclass(frozen=True, slots=True)
class Inspection:
    """A bundle and what is wrong with its files; empty where every hash holds."""

    bundle: Bundle
    problems: dict[Path, str]

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
        }

    def to_text(self) -> str:
        """For a terminal."""
        manifest, preprocess = self.bundle.manifest, self.bundle.preprocess
        source, classes = manifest.source, manifest.classes
        shown = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
        machines = {artifact.built_with.get("machine", "") for artifact in manifest.artifacts}
        facts = [
            ("bundle", self.bundle.path),
            ("id", manifest.id),
            ("checkpoint", f"sha256 {source.checkpoint_sha256}"),
            ("network", f"{source.arch}, setting {source.setting}, epoch {source.epoch}"),
            ("made on", "; ".join(sorted(machines))),
            ("classes", f"{len(classes)}: {shown}"),
            (
                "preprocess",
                f"shorter side {preprocess.resize}, centre {preprocess.crop} pixels, "
                f"{preprocess.resampling}, sha256 {preprocess.sha256[:12]}",
            ),
            ("hashes", "all hold" if not self.problems else f"{len(self.problems)} wrong"),
        ]
        return "\n".join([
            tabulate(facts, tablefmt="plain", disable_numparse=True), "",
            tabulate(
                [self._row(artifact) for artifact in manifest.artifacts],
                ("artefact", "precision", "MB", "largest batch", "parity", "built with"),
                disable_numparse=True,
            ),
        ])  # fmt: skip

    def _row(self, artifact: Artifact) -> tuple[str, ...]:
        parity, size_bytes = artifact.parity, self._size_bytes(artifact)
        return (
            artifact.file, artifact.precision,
            "missing" if size_bytes is None else f"{size_bytes / 1e6:.1f}", str(artifact.max_batch),
            f"{parity.verdict.replace('_', ' ')}, n = {parity.n}, on {parity.ran_on}"
            if parity else "not verified",
            self._built_with(artifact),
        )  # fmt: skip

    @staticmethod
    def _built_with(artifact: Artifact) -> str:
        """What decides where it runs: the engine's library and GPU, else the exporter."""
        built_with = f"{artifact.format} {artifact.built_with.get(artifact.format, '')}"
        return f"{built_with} for {artifact.gpu}" if artifact.gpu else built_with

    def _size_bytes(self, artifact: Artifact) -> int | None:
        path = self.bundle.path / artifact.file
        return path.stat().st_size if path.is_file() else None


def inspect_bundle(path: Path) -> Inspection:
    """Read a bundle and check every hash. Raises BundleError where bundle.json can't be read."""
    bundle = Bundle(path, read_manifest(path / MANIFEST))
    return Inspection(bundle, {file: problem for file, problem in bundle.check() if problem})
