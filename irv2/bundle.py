"""A bundle: a folder that is all a server needs, as a chain of custody.

`bundle.json` (irv2/manifest.py) names every file with its hash. Nothing is loaded before all hashes
have been checked.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np

from irv2.errors import BundleError, ImageError, InputError
from irv2.images.preprocess import Prepared, Preprocess, prepare
from irv2.manifest import (
    MANIFEST,
    NO_SHA256,
    Artifact,
    Manifest,
    bundle_id,
    is_judged,
    manifest_json,
    own_sha256,
    read_manifest,
)
from irv2.results import DEFAULT_TOP_K, Result, check_top_k, top_k_scores
from irv2.runners.base import Runner
from irv2.runners.choose import open_best
from irv2.system.files import file_sha256, write_atomically
from irv2.types import ImageSource, as_images


class Bundle:
    """An opened bundle: its hashes match and its preprocessing is understood."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        try:
            self.preprocess = Preprocess.from_json(manifest.preprocess, path / MANIFEST)
        except InputError as error:
            raise BundleError(error.what, error.got, error.expected, error.way_out) from error

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Read bundle.json and check every hash; raises BundleError for the first mismatch."""
        path = Path(path)
        bundle = cls(path, read_manifest(path / MANIFEST))
        for what, problem in bundle.check():
            if problem:
                raise BundleError(what, problem, way_out=bundle.way_out(what))
        return bundle

    def __reduce__(self) -> tuple[Any, ...]:
        """Support pickling: another process opens the bundle anew, with an engine of its own."""
        return type(self).open, (self.path.absolute(),)

    @property
    def id(self) -> str:
        """Hash over models, preprocessing and classes; evidence does not change it."""
        return self.manifest.id

    @property
    def classes(self) -> list[str]:
        """Class names by index."""
        return self.manifest.classes

    @property
    def artifacts(self) -> list[Artifact]:
        """The model files, with what is known about each."""
        return self.manifest.artifacts

    def check(self) -> Iterator[tuple[Path, str]]:
        """Yield each file of the bundle with what is wrong with it, or an empty string."""
        models = [(artifact.file, artifact.sha256) for artifact in self.artifacts]
        for name, sha256 in [*models, *self.manifest.files.items()]:
            yield self.path / name, self._file_problem(self.path / name, sha256)
        yield self.path / MANIFEST, self._manifest_problem()

    def require_models_unchanged(self) -> None:
        """Raise BundleError for a model file that does not have its hash (any more)."""
        for artifact in self.artifacts:
            path = self.path / artifact.file
            if problem := self._file_problem(path, artifact.sha256):
                raise BundleError(path, problem, "the file that was made", "export again")

    def require_fit(self, artifact: Artifact, runner: Runner) -> None:
        """Raise BundleError unless the artefact takes and gives what bundle.json says."""
        found = (runner.image_size, runner.num_classes)
        expected = (self.preprocess.crop, len(self.classes))
        sha256 = self.preprocess.sha256
        found_sha256 = runner.metadata.get("preprocess_sha256", sha256)
        if found != expected:
            got = f"takes {found[0]} pixels and gives {found[1]} classes"
            wanted = f"{expected[0]} and {expected[1]}"
        elif found_sha256 != sha256:
            got, wanted = f"was exported for preprocessing {found_sha256[:12]}", sha256[:12]
        else:
            return
        path = self.path / artifact.file
        raise BundleError(path, got, f"{wanted}, as bundle.json says", "export it again")

    def way_out(self, wrong: Path) -> str:
        """Say how to repair a file of the bundle that does not match its hash."""
        return f"run `irv2 verify {self.path}`" if is_judged(wrong) else "export it again"

    def _file_problem(self, path: Path, sha256: str) -> str:
        if path.parent != self.path:
            return "lies outside the bundle"
        if not path.is_file():
            return "is missing"
        return _mismatch(file_sha256(path), sha256)

    def _manifest_problem(self) -> str:
        """Say what is wrong with bundle.json; checked last, as a file's own problem says more."""
        contents = (self.artifacts, self.manifest.preprocess, self.classes)
        computed = bundle_id(*contents)
        if self.id not in (computed, bundle_id(*contents, with_engine_bytes=True)):
            return f"id {self.id[:12]}; expected {computed[:12]} for its contents"
        content, stated = (self.path / MANIFEST).read_bytes(), self.manifest.sha256
        found = own_sha256(content.replace(stated.encode(), NO_SHA256.encode(), 1))
        return _mismatch(found, stated)

    def with_manifest(self, manifest: Manifest) -> "Bundle":
        """Replace bundle.json atomically and return the new bundle."""
        write_atomically(self.path / MANIFEST, manifest_json(manifest))
        return Bundle(self.path, manifest)

    def classify(
        self, images: ImageSource | Iterable[ImageSource], top_k: int = DEFAULT_TOP_K
    ) -> list[Result]:
        """Classify paths, encoded bytes or uint8 RGB (H, W, 3) arrays, without a server.

        Uses the artefact that a server on this machine would choose. A lone image gives a list of
        one Result. An image that can't be decoded gives a Result with an error and does not affect
        the others. Raises BundleError if nothing in the bundle can run here, and UsageError for a
        `top_k` that can't be used.
        """
        check_top_k(top_k)
        results: list[Result] = []
        remaining = iter(as_images(images))
        while batch := list(islice(remaining, self._runner.max_batch)):
            results += self._classify_batch(batch, top_k)
        return results

    def _classify_batch(self, images: Sequence[ImageSource], top_k: int) -> list[Result]:
        prepared: dict[int, Prepared] = {}
        errors: dict[int, ImageError] = {}
        for i, image in enumerate(images):
            try:
                prepared[i] = prepare(image, self.preprocess)
            except ImageError as error:
                errors[i] = error
        crops = [each.image_hwc for each in prepared.values()]
        logits = [*self._runner.run(np.stack(crops))] if prepared else []
        scores = {
            i: top_k_scores(row, self.classes, top_k)
            for i, row in zip(prepared, logits, strict=True)
        }
        return [
            Result(scores[i], model_id=self.id, orientation=prepared[i].orientation)
            if i in prepared
            else Result(error=errors[i], model_id=self.id)
            for i in range(len(images))
        ]

    @cached_property
    def _runner(self) -> Runner:
        best = open_best(self.path, self.artifacts)
        self.require_fit(best.artifact, best.runner)
        return best.runner


def _mismatch(found: str, stated: str) -> str:
    if found == stated:
        return ""
    return f"sha256 {found[:12]}; expected {stated[:12]}: the file was changed"
