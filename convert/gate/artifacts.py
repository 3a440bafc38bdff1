"""Running a bundle's artefacts for the gate: the ones this machine can run, in one pass."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from irv2.bundle import Bundle
from irv2.convert.gate.verdict import Judgement
from irv2.errors import EngineError
from irv2.manifest import Artifact
from irv2.runners.base import Runner
from irv2.runners.choose import devices, open_runner

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Opened:
    """By file name: a runner for each artefact, or why this machine has none."""

    runners: dict[str, Runner]
    reasons: dict[str, str]


@contextmanager
def open_artifacts(bundle: Bundle) -> Iterator[Opened]:
    """Open every artefact on the fastest device that takes it."""
    opened = Opened({}, {})
    with ExitStack() as stack:
        for artifact in bundle.manifest.artifacts:
            try:
                runner = stack.enter_context(_open_fastest(bundle, artifact))
                opened.runners[artifact.file] = runner
            except EngineError as error:
                opened.reasons[artifact.file] = f"{error.what}: {error.got}"
                logger.warning("%s is not run here: %s", artifact.file, error)
        yield opened


def undecided(artifacts: list[Artifact], judged: dict[str, Judgement]) -> dict[str, str]:
    """Files beside float32 that too few images could judge, and the engines made of them: why."""
    models = {
        artifact.sha256: artifact.file
        for artifact in artifacts
        if artifact.precision != "fp32"
        and artifact.file in judged
        and judged[artifact.file].parity.verdict == "too_few_images"
    }
    engines = {
        artifact.file: f"it is made of {models[artifact.built_from]}"
        for artifact in artifacts
        if artifact.built_from in models
    }
    return engines | {file: judged[file].line for file in models.values()}


def _open_fastest(bundle: Bundle, artifact: Artifact) -> Runner:
    *faster, last = devices(artifact)
    for device in faster:
        try:
            return open_runner(bundle.path / artifact.file, artifact, device)
        except EngineError as error:
            logger.info("%s: not on %s (%s)", artifact.file, device, error)
    return open_runner(bundle.path / artifact.file, artifact, last)
