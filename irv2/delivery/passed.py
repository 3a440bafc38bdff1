"""What of a bundle may be handed to another program: what has passed on an engine of its own."""

from collections.abc import Collection

from irv2.bundle import Bundle
from irv2.errors import BundleError
from irv2.manifest import Artifact, Evidence


def passed_on(bundle: Bundle, backends: Collection[str]) -> list[tuple[Artifact, Evidence]]:
    """Each artefact that has passed on some of `backends`, with the evidence, fastest first.

    Raises BundleError if none has.
    """
    found = []
    for artifact in bundle.artifacts:
        rows = [row for row in artifact.known if row.backend in backends]
        passed = [row for row in rows if row.parity.verdict == "passed"]
        found += [(artifact, row) for row in passed]
    if not found:
        raise BundleError(
            bundle.path,
            "nothing in it has passed where it is to run",
            " or ".join(backends),
            f"run `irv2 verify {bundle.path}` where one of them is installed",
        )
    return sorted(found, key=lambda each: -(each[1].images_per_s or 0))
