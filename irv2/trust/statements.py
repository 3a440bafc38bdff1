"""What bundle.json says, in the words of others: in-toto statements, a CycloneDX BOM, a card.

They are made from bundle.json when it is signed, so they say no more than it does, and the
signature covers them.
"""

import json
import uuid
from collections.abc import Iterator
from typing import Any, Literal

import msgspec
from tabulate import tabulate

from irv2.manifest import Artifact, Evidence, Manifest, Parity, Source
from irv2.measures.estimates import Estimate, proportion
from irv2.system.text import first_few, one_line

VERDICTS, BOM, CARD = "verdicts.intoto.jsonl", "bom.cdx.json", "README.md"
CARD_BEGINS = "---\n# Made by irv2 sign from bundle.json; signing again replaces it.\n"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://cyclonedx.org/irv2.bundle/1")


def statements(manifest: Manifest) -> dict[str, bytes]:
    """Return the files that are signed with a bundle: name -> content."""
    lines = [json.dumps(each, allow_nan=False) + "\n" for each in verdicts(manifest)]
    return {
        VERDICTS: "".join(lines).encode(),
        BOM: (json.dumps(bom(manifest), indent=2, allow_nan=False) + "\n").encode(),
        CARD: card(manifest).encode(),
    }


def verdicts(manifest: Manifest) -> Iterator[dict[str, Any]]:
    """One in-toto test result for each artefact and kind of processor that it was judged on.

    https://in-toto.io/attestation/test-result/v0.1; `parity` is the record of bundle.json, in a
    field that others pass over.
    """
    for artifact, row in _rows(manifest):
        result, parity = _result(row.parity), row.parity
        tests = {"PASSED": "passedTests", "WARNED": "warnedTests", "FAILED": "failedTests"}
        limits: dict[str, Any] = {
            "confidence": parity.confidence,
            "tolerance_top1_points": parity.top1.tolerance_points,
            "tolerance_top5_points": parity.top5.tolerance_points,
            "backend": row.backend,
            "backend_version": row.backend_version,
            "instruction_set": row.instruction_set,
        }
        yield {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"name": artifact.file, "digest": {"sha256": artifact.sha256}}],
            "predicateType": "https://in-toto.io/attestation/test-result/v0.1",
            "predicate": {
                "result": result,
                "configuration": [
                    {"name": "evaluation images", "digest": {"sha256": parity.data_sha256}},
                    {"name": "irv2 parity gate", "annotations": limits},
                ],
                **{field: ["parity"] if name == result else [] for name, field in tests.items()},
                "parity": msgspec.to_builtins(parity),
            },
        }


def bom(manifest: Manifest) -> dict[str, Any]:
    """Return the ML-BOM, CycloneDX 1.6: each artefact with its errors and their exact intervals."""
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(_NAMESPACE, manifest.sha256).urn,
        "version": 1,
        "metadata": {
            "component": {
                "type": "machine-learning-model",
                "bom-ref": manifest.id,
                "name": manifest.source.arch,
                "version": manifest.id,
                **_licenses(manifest.source),
            }
        },
        "components": [_component(manifest, artifact) for artifact in manifest.artifacts],
        "dependencies": [{"ref": manifest.id, "dependsOn": [a.file for a in manifest.artifacts]}],
    }


def card(manifest: Manifest) -> str:
    """Return the model card, Markdown with the front matter that hubs read."""
    source, names = manifest.source, manifest.classes
    license_line = f"license_name: {json.dumps(_license(source))}\n" if _license(source) else ""
    shown = first_few([one_line(name) for name in names], 10)
    table = [_card_row(artifact, row) for artifact, row in _rows(manifest)]
    headers = ("file", "verdict", "top-1 error, %", "top-5 error, %", "checkpoint", "lost, gained",
               "images", "ran on")  # fmt: skip
    unjudged = [artifact.file for artifact in manifest.artifacts if not artifact.known]
    return "\n".join(
        [
            f"{CARD_BEGINS}pipeline_tag: image-classification\n{license_line}---",
            f"# {source.arch}, {len(names)} classes",
            "",
            f"Bundle {manifest.id}, made from the checkpoint with SHA-256 "
            f"{source.checkpoint_sha256} (setting {source.setting}, epoch {source.epoch}).",
            "",
            f"Classes: {shown}",
            "",
            "## Errors on labelled images",
            "",
            "In brackets the exact 95 % interval (Clopper and Pearson). `lost` and `gained` count "
            "the images on which this file is wrong and the checkpoint right, and the reverse.",
            "",
            tabulate(table, headers, tablefmt="github", disable_numparse=True),
            "",
            *([f"Not judged: {', '.join(unjudged)}.", ""] if unjudged else []),
            "The images are named by a hash of them and their labels in bundle.json, as are the "
            "tolerances; parity.md has the whole verdict. An error holds for images like these; "
            "of others it says nothing.",
            "",
        ]
    )


def _rows(manifest: Manifest) -> Iterator[tuple[Artifact, Evidence]]:
    return ((artifact, row) for artifact in manifest.artifacts for row in artifact.known)


def _result(parity: Parity) -> Literal["PASSED", "WARNED", "FAILED"]:
    """Too few images are no pass; a checkpoint at chance passes with a warning."""
    if parity.verdict != "passed":
        return "FAILED"
    return "WARNED" if parity.at_chance else "PASSED"


def _component(manifest: Manifest, artifact: Artifact) -> dict[str, Any]:
    metrics = [
        {
            "type": f"{name} error, percent",
            "value": f"{estimate.percent:.6g}",
            "slice": f"{row.parity.n} images, sha256 {row.parity.data_sha256}, on {row.ran_on}",
            "confidenceInterval": {
                "lowerBound": f"{estimate.low:.6g}",
                "upperBound": f"{estimate.high:.6g}",
            },
        }
        for row in artifact.known
        for name, estimate in exact_errors(row.parity).items()
    ]
    return {
        "type": "machine-learning-model",
        "bom-ref": artifact.file,
        "name": artifact.file,
        "version": artifact.sha256,
        "hashes": [{"alg": "SHA-256", "content": artifact.sha256}],
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "supervised"},
                "task": "image-classification",
                "architectureFamily": "convolutional neural network",
                "modelArchitecture": manifest.source.arch,
                "inputs": [{"format": "uint8 RGB images"}],
                "outputs": [{"format": f"float32 logits of {len(manifest.classes)} classes"}],
            },
            "quantitativeAnalysis": {"performanceMetrics": metrics},
        },
        "properties": [{"name": "irv2:precision", "value": artifact.precision}],
    }


def _card_row(artifact: Artifact, row: Evidence) -> tuple[str, ...]:
    parity = row.parity
    errors = [f"{e.percent:.2f} ({e.low:.2f}-{e.high:.2f})" for e in exact_errors(parity).values()]
    chance = ", checkpoint at chance" if parity.at_chance else ""
    return (
        artifact.file,
        parity.verdict.replace("_", " ") + chance,
        *errors,
        f"{parity.top1.reference_error:.2f}, {parity.top5.reference_error:.2f}",
        f"{parity.top1.lost}, {parity.top1.gained}",
        str(parity.n),
        row.ran_on,
    )


def exact_errors(parity: Parity) -> dict[str, Estimate]:
    """The artefact's errors with their exact intervals, from the counts behind the percents."""
    found = {}
    for name, change in (("top-1", parity.top1), ("top-5", parity.top5)):
        estimate = proportion(round(change.error / 100 * parity.n), parity.n)
        if estimate is not None:
            found[name] = estimate
    return found


def _license(source: Source | None) -> str:
    """The licence of the published weights that it all began with, where one is stated."""
    if source is None:
        return ""
    return source.imported.license if source.imported else _license(source.begun_from)


def _licenses(source: Source) -> dict[str, Any]:
    name = _license(source)
    return {"licenses": [{"license": {"name": name}}]} if name else {}
