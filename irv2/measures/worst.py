"""The images that a model gets most wrong, as a table or a contact sheet."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from irv2.images.contact_sheet import Tile, draw_sheet
from irv2.images.decode import FILE_LIMITS, decode
from irv2.measures.evaluation import Evaluation
from irv2.system.text import one_line

RIGHT, WRONG = "#444444", "#b00020"


@dataclass(frozen=True, slots=True, kw_only=True)
class BadAnswer:
    """One image: `loss` is the cross entropy, minus the logarithm of its label's probability."""

    index: int  # of the evaluation's images
    file: Path
    label: str
    prediction: str
    probability: float  # of the prediction, percent
    label_probability: float  # percent
    loss: float

    def to_json(self) -> dict[str, Any]:
        """Plain values, for --json."""
        return {
            "file": str(self.file),
            "label": self.label,
            "prediction": self.prediction,
            "probability": self.probability,
            "label_probability": self.label_probability,
            "loss": self.loss,
        }


def worst(evaluation: Evaluation, num: int) -> list[BadAnswer]:
    """Return the `num` images with the highest loss, the worst first."""
    labels, best = evaluation.predictions.labels, evaluation.best
    losses = -evaluation.log_probabilities(labels)
    of_best = 100 * np.exp(evaluation.log_probabilities(best))
    return [
        BadAnswer(
            index=i,
            file=evaluation.images.path(i),
            label=evaluation.classes[labels[i]],
            prediction=evaluation.classes[best[i]],
            probability=float(of_best[i]),
            label_probability=100 * float(np.exp(-losses[i])),
            loss=float(losses[i]),
        )
        for i in np.argsort(-losses, kind="stable")[:num].tolist()
    ]


def worst_table(answers: list[BadAnswer], n: int) -> str:
    """For a terminal; `n` images were evaluated."""
    rows = [
        (
            one_line(a.file),
            one_line(a.label),
            f"{a.label_probability:.2f} %",
            one_line(a.prediction),
            f"{a.probability:.2f} %",
            f"{a.loss:.3f}",
        )
        for a in answers
    ]
    headers = ("image", "label", "p(label)", "prediction", "p(prediction)", "loss")
    table = tabulate(rows, headers, disable_numparse=True)
    return f"the {len(answers)} of {n} images with the highest loss:\n{table}"


def draw_worst(evaluation: Evaluation, answers: list[BadAnswer], path: Path) -> None:
    """Write a PNG of these images, numbered, with their answers: wrong ones in red."""

    def tiles() -> Iterator[Tile]:
        for number, a in enumerate(answers, 1):
            image = evaluation.images.read(a.index)
            lines = (
                f"label {a.label}: {a.label_probability:.1f} %",
                f"prediction {a.prediction}: {a.probability:.1f} %",
                f"no. {number}, loss {a.loss:.2f}",
            )
            colour = RIGHT if a.prediction == a.label else WRONG
            yield Tile(decode(image, FILE_LIMITS), lines, colour)

    heading = f"{evaluation.headline()}\nthe {len(answers)} with the highest loss"
    draw_sheet(heading, tiles(), path)
