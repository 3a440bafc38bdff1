"""The bundle's images through a running server: encoded files in, the recorded decisions out.

Catches what the gate can't see from inside: a server that decodes, crops, batches or orders
differently from the evaluation. No engine is needed here: the answers are compared with the ledger
that the gate wrote for the artefact which the server runs (docs/gate.md).
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from irv2.bundle import Bundle
from irv2.client import Client
from irv2.convert.gate.reference import Reference
from irv2.data.dataset import BadImages, ImageFolder, open_split
from irv2.data.samples import resolve_data
from irv2.errors import BundleError
from irv2.ledger import Ledger
from irv2.manifest import LEDGER_SUFFIX, REFERENCE, Artifact, Evidence, Parity, Precision
from irv2.results import Result
from irv2.runners.choose import INT8_CPU, INT8_TRT
from irv2.system.progress import progress
from irv2.v1 import classifier_pb2

IMAGES_AT_A_TIME = 512  # encoded images held in memory
# Another processor or library rounds differently. Classes whose logits are no further apart than
# this share of the typical margin may change places (DECISIONS.md has what was measured).
TIES: dict[Precision, float] = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 1e-1, "int8": 1e-1}
NUM_RECORDED = 5
TOP_K = 2 * NUM_RECORDED  # what fell out of the five is seen with its probability


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedReport:
    """How many of `n` images got the decisions that the bundle records, and which did not.

    Each is asked about alone and among many, and counts where both answers are right.
    """

    server: str
    model_id: str
    artefact: str
    n: int
    num_equal: int  # near ties included
    num_ties: int
    num_checkpoint_top1: int
    differing: list[str]  # image files

    def to_json(self) -> dict[str, Any]:
        """Plain values, for --json."""
        return asdict(self)

    def to_text(self) -> str:
        """For a terminal."""
        ties = f", {self.num_ties} of them but for a near tie" if self.num_ties else ""
        lines = [
            f"{self.server} serves {self.artefact} of model {self.model_id[:12]}",
            f"{self.num_equal} of {self.n} images get the decisions that the bundle records "
            f"(best class and best five, alone and among many){ties}",
            f"{self.num_checkpoint_top1} of {self.n} have the checkpoint's best class",
        ]
        return "\n".join(lines + [f"differs: {file}" for file in self.differing])


def verify_server(
    path: Path, client: Client, data: Path | None, bad_images: BadImages = "error"
) -> ServedReport:
    """Ask a server about every image of the bundle's evidence: one by one, and many at once.

    Raises BundleError if the server has another model or the bundle no evidence of what it runs,
    and an Irv2Error if the server does not answer.
    """
    bundle = Bundle.open(path)
    model = client.model()
    _require_model(bundle, client, {model.id})
    artifact, evidence = served_artifact(bundle, model)
    split = open_split(resolve_data(data), "val", bundle.classes, bad_images)
    images, reference, _ = Reference.load(path / REFERENCE).find_images(split)
    ledger = _load_ledger(bundle, artifact.ledger(evidence), reference)
    title = f"ask {client.name}"
    alone = list(progress(_ask_alone(client, images), title, len(images), "images"))
    together = list(progress(_ask_together(client, images), title, len(images), "images"))
    _require_model(bundle, client, {result.model_id for result in alone + together})
    limit = TIES[artifact.precision] * ledger.typical_margin
    answers = list(zip(alone, together, strict=True))
    equal, exact = (
        [
            all(_is_recorded(ledger, i, result, most) for result in both)
            for i, both in enumerate(answers)
        ]
        for most in (limit, 0.0)
    )
    return ServedReport(
        server=client.name,
        model_id=model.id,
        artefact=artifact.file,
        n=len(equal),
        num_equal=sum(equal),
        num_ties=sum(equal) - sum(exact),
        num_checkpoint_top1=sum(
            all(_best(result) == label for result in both)
            for label, both in zip(reference.top5[:, 0].tolist(), answers, strict=True)
        ),
        differing=[file for file, same in zip(images.files, equal, strict=True) if not same],
    )


def _require_model(bundle: Bundle, client: Client, model_ids: set[str]) -> None:
    """Raise BundleError if one of them is not the bundle's."""
    for other in model_ids - {bundle.id, ""}:  # "": the image was not sent
        raise BundleError(
            bundle.path,
            f"{client.name} serves model {other[:12]}",
            f"{bundle.id[:12]}, this bundle's",
            "name the bundle that it serves",
        )


def served_artifact(bundle: Bundle, model: classifier_pb2.Model) -> tuple[Artifact, Evidence]:
    """The artefact that the server runs, with its evidence: precision, backend and, of two, parity.

    Where evidence was written anew on one side, the int8 file that is made for the backend.
    """
    parity = msgspec.json.decode(model.parity_json, type=Parity | None)
    found = [
        (artifact, row)
        for artifact in bundle.manifest.artifacts
        for row in artifact.known
        if (artifact.precision, row.backend) == (model.precision, model.backend)
    ]
    other = INT8_TRT if model.backend.endswith("-cpu") else INT8_CPU
    found.sort(key=lambda each: (each[1].parity != parity, each[0].file == other))
    if not found:
        got = f"no {model.precision} artefact for {model.backend}, which the server runs"
        raise BundleError(bundle.path, got, "the bundle that it serves")
    return found[0]


def _load_ledger(bundle: Bundle, name: str, reference: Reference) -> Ledger:
    """What the gate saw of an artefact, in the order of `reference`."""
    file = bundle.path / name
    if not file.is_file():
        way_out = "run `irv2 verify` where the artefact can be run"
        got = f"no answers of {name.removesuffix(LEDGER_SUFFIX)} in it"
        raise BundleError(bundle.path, got, way_out=way_out)
    ledger = Ledger.load(file)
    row_of = {key: row for row, key in enumerate(ledger.keys)}
    if missing := sum(key not in row_of for key in reference.keys):
        got = f"lacks {missing} of the {len(reference)} images of {REFERENCE}"
        raise BundleError(file, got, "an answer to each", "run `irv2 verify` again")
    return ledger.take([row_of[key] for key in reference.keys])


def _ask_alone(client: Client, images: ImageFolder) -> Iterator[Result]:
    for i in range(len(images)):
        yield from client.classify([images.read(i)], TOP_K)


def _ask_together(client: Client, images: ImageFolder) -> Iterator[Result]:
    """Keep the server full with concurrent requests of many images each."""
    for start in range(0, len(images), IMAGES_AT_A_TIME):
        indices = range(start, min(start + IMAGES_AT_A_TIME, len(images)))
        yield from client.iter_classify([images.read(i) for i in indices], TOP_K)


def _best(result: Result) -> int | None:
    return result.scores[0].index if result.scores else None


def _is_recorded(ledger: Ledger, i: int, result: Result, limit: float) -> bool:
    """Whether the best class and the best five are those recorded for image `i`.

    Classes whose logits are at most `limit` apart may change places: the best one by the record,
    those that left the five both by the record and as served.
    """
    recorded = dict(zip(ledger.top5[i].tolist(), ledger.top5_logits[i].tolist(), strict=True))
    served = {
        score.index: math.log(score.probability) if score.probability else -math.inf
        for score in result.scores
    }
    best = _best(result)
    if best not in recorded or recorded[best] < max(recorded.values()) - limit:
        return False
    fifth = list(served)[: len(recorded)]
    least_recorded, least_served = min(recorded.values()), served[fifth[-1]]
    return all(
        recorded[index] <= least_recorded + limit
        and served.get(index, -math.inf) >= least_served - limit
        for index in recorded.keys() - set(fifth)
    )
