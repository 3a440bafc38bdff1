"""The bundle's images through a running server: encoded files in, answers out.

Catches what the gate can't see from inside: a server that decodes, crops, batches or orders
differently from the evaluation.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convert.reference import REFERENCE, Reference
from irv2.bundle import Bundle
from irv2.client import Client
from irv2.dataset import BadImages, ImageFolder, open_split
from irv2.errors import BundleError
from irv2.evaluate import classify_folder
from irv2.progress import progress
from irv2.results import DEFAULT_TOP_K, Result, Score, top_k_scores
from irv2.runners.choose import open_best
from irv2.samples import resolve_data

PROBABILITY_TOLERANCE = 1e-5  # float32 softmax over batches of other sizes
IMAGES_AT_A_TIME = 512  # encoded images held in memory


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedReport:
    """For how many of `n` images both answers are the bundle's own, and the checkpoint's top 1.

    Each is asked about alone and among many.
    """

    server: str
    model_id: str
    artefact: str
    n: int
    num_equal: int
    num_checkpoint_top1: int
    differing: list[str]  # image files whose answers are not the bundle's

    def to_json(self) -> dict[str, Any]:
        """Plain values, for --json."""
        return asdict(self)

    def to_text(self) -> str:
        """For a terminal."""
        lines = [
            f"{self.server} serves {self.artefact} of model {self.model_id[:12]}",
            f"{self.num_equal} of {self.n} answers equal the bundle's own "
            f"(labels, and probabilities to {PROBABILITY_TOLERANCE:g})",
            f"{self.num_checkpoint_top1} of {self.n} have the checkpoint's best class",
        ]
        return "\n".join(lines + [f"differs: {file}" for file in self.differing])


def verify_server(
    path: Path, client: Client, data: Path | None, bad_images: BadImages = "error"
) -> ServedReport:  # fmt: skip
    """Ask a server about every image of the bundle's evidence: one by one, and many at once.

    The same artefact answers here, without a server, for comparison. Raises BundleError where
    the server has another model, and an Irv2Error where it or the artefact can't be run.
    """
    bundle = Bundle.open(path)
    split = open_split(resolve_data(data), "val", bundle.classes, bad_images)
    images, reference = Reference.load(path / REFERENCE).find_images(split)
    model = client.model()
    if model.id != bundle.id:
        raise BundleError(
            path, f"{client.name} serves model {model.id[:12]}", f"{bundle.id[:12]}, this bundle's",
            "name the bundle that it serves",
        )  # fmt: skip
    title = f"ask {client.name}"
    alone = list(progress(_ask_alone(client, images), title, len(images), "images"))
    together = list(progress(_ask_together(client, images), title, len(images), "images"))
    artifact, runner = open_best(bundle, model.precision, model.backend)
    with runner:
        [ledger] = classify_folder([runner], images, bundle.preprocess, title="compare")
    own = [top_k_scores(row, bundle.classes, DEFAULT_TOP_K) for row in ledger.logits]
    equal = [
        all(_is_equal(mine, result) for result in results)
        for mine, *results in zip(own, alone, together, strict=True)
    ]
    return ServedReport(
        server=client.name, model_id=model.id, artefact=artifact.file, n=len(equal),
        num_equal=sum(equal),
        num_checkpoint_top1=sum(
            all(_has_best(result, label) for result in results)
            for label, *results in zip(
                reference.top5[:, 0].tolist(), alone, together, strict=True
            )
        ),
        differing=[file for file, same in zip(images.files, equal, strict=True) if not same],
    )  # fmt: skip


def _ask_alone(client: Client, images: ImageFolder) -> Iterator[Result]:
    for i in range(len(images)):
        yield from client.classify([images.read(i)], DEFAULT_TOP_K)


def _ask_together(client: Client, images: ImageFolder) -> Iterator[Result]:
    """As many requests of many images under way as keep the server full."""
    for start in range(0, len(images), IMAGES_AT_A_TIME):
        indices = range(start, min(start + IMAGES_AT_A_TIME, len(images)))
        yield from client.iter_classify([images.read(i) for i in indices], DEFAULT_TOP_K)


def _has_best(result: Result, label: int) -> bool:
    return bool(result.scores) and result.scores[0].index == label


def _is_equal(own: tuple[Score, ...], served: Result) -> bool:
    """The same classes with the same probabilities; equal ones may come in either order."""
    mine = {score.label: score.probability for score in own}
    theirs = {score.label: score.probability for score in served.scores}
    return mine.keys() == theirs.keys() and all(
        abs(mine[label] - theirs[label]) <= PROBABILITY_TOLERANCE for label in mine
    )
