"""The chain from images and weights to the files that are served, by their hashes."""

from collections.abc import Iterator, Sequence
from xml.etree.ElementTree import Element

from irv2.manifest import Artifact, Source
from irv2.report.html import facts, section, table, tag
from irv2.report.sources import Published, Run


def provenance_section(published: Published, runs: Sequence[Run]) -> Element:
    """Follow the hashes, then give them in full with versions and signer."""
    bundle = published.bundle
    files = [
        (
            artifact.file,
            f"{artifact.format}, {artifact.precision}"
            + (f", {artifact.gpu}" if artifact.gpu else ""),
            f"{(bundle.path / artifact.file).stat().st_size / 1e6:.3f}",
            tag("code", artifact.sha256),
        )
        for artifact in bundle.artifacts
    ]
    return section(
        3,
        "Provenance",
        tag("p", "Each step names what the one below it was made from; the hashes were checked."),
        tag("ul", _origin(published, runs), class_="chain"),
        facts(f"Facts of {published.name}", published.inspection.facts()),
        table("Models", ("file", "kind", "MB", "sha256"), files, numbers=(2,)),
        _versions(bundle.artifacts),
    )


def _origin(published: Published, runs: Sequence[Run]) -> Element:
    """The item of the first weights, which holds what was made from them, and so on."""
    source = published.bundle.manifest.source
    item = _checkpoint(published, runs)
    for label in _before(source):
        item = tag("li", label, tag("ul", item))
    return item


def _before(source: Source) -> Iterator[str]:
    """What the weights were begun with, the latest first."""
    if source.imported is not None:
        weights = source.imported
        place = f" of {weights.repository}" if weights.repository else ""
        yield f"published weights {weights.file}{place}, sha256 {_short(weights.sha256)}"
    if (before := source.begun_from) is not None:
        yield (
            f"checkpoint of setting {before.setting}, epoch {before.epoch}, sha256 "
            f"{_short(before.checkpoint_sha256)}"
        )
        yield from _before(before)


def _checkpoint(published: Published, runs: Sequence[Run]) -> Element:
    source, artifacts = published.bundle.manifest.source, published.bundle.artifacts
    sha256 = source.checkpoint_sha256
    held = [f"{file} of run {run.name}" for run in runs for file in run.files_with(sha256)]
    whose = f"which is {' and '.join(held)}" if held else "which none of this report's runs holds"
    step = f"setting {source.setting}, epoch {source.epoch}"
    label = f"checkpoint of {step}, sha256 {_short(sha256)}, {whose}"
    made_of_others = {each.sha256 for each in artifacts}
    roots = [each for each in artifacts if each.built_from not in made_of_others]
    return tag("li", label, tag("ul", *(_artifact(each, artifacts, sha256) for each in roots)))


def _artifact(artifact: Artifact, all_: Sequence[Artifact], checkpoint_sha256: str) -> Element:
    """The item of a model file, with what was made from it."""
    label = f"{artifact.file}, sha256 {_short(artifact.sha256)}"
    made = {checkpoint_sha256, *(each.sha256 for each in all_)}
    if artifact.built_from not in made:
        label += f", made from {_short(artifact.built_from)}, which is not in the bundle"
    if (parity := artifact.parity) is not None:
        label += f"; judged on {parity.n} images, sha256 {_short(parity.data_sha256)}"
    children = [each for each in all_ if each.built_from == artifact.sha256 != each.sha256]
    below = (
        [tag("ul", *(_artifact(c, all_, checkpoint_sha256) for c in children))] if children else []
    )
    return tag("li", label, *below)


def _versions(artifacts: Sequence[Artifact]) -> Element:
    """What each file was built with: a row per library or setting, a column per file."""
    names = list(dict.fromkeys(name for artifact in artifacts for name in artifact.built_with))
    rows = []
    for name in names:
        users: dict[str, list[str]] = {}
        for artifact in artifacts:
            if name in artifact.built_with:
                users.setdefault(artifact.built_with[name], []).append(artifact.file)
        for value, files in users.items():
            rows.append((name.replace("_", " "), value, ", ".join(files)))
    backends = dict.fromkeys(
        (row.backend, row.backend_version, artifact.file)
        for artifact in artifacts
        for row in artifact.known
        if row.backend_version
    )
    for backend, version, file in backends:
        rows.append((f"judged with {backend}", version, file))
    return table("Versions and settings", ("what", "value", "files"), rows)


def _short(sha256: str) -> str:
    return sha256[:12]
