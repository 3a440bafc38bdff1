"""What a model makes of each class: precision, recall, F1, and which class it takes for which."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from tabulate import tabulate

from irv2.measures.estimates import Estimate, balanced_accuracy, f1_score, proportion
from irv2.system.text import one_line
from irv2.types import IntArray

MAX_ROWS = 30  # classes in the table; of more, those with the lowest F1
MAX_MATRIX = 15  # classes whose confusion matrix fits on a screen
NUM_PAIRS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassResult:
    """One class. Its estimates are None where no image could have counted for them."""

    label: str
    n: int  # images of the class
    precision: Estimate | None  # of the images taken for it
    recall: Estimate | None  # of its images
    f1: Estimate | None  # of both

    def to_json(self) -> dict[str, Any]:
        """Plain values, for --json."""
        estimates = {"precision": self.precision, "recall": self.recall, "f1": self.f1}
        plain = {name: value and value.to_json() for name, value in estimates.items()}
        return {"label": self.label, "n": self.n, **plain}


@dataclass(frozen=True)
class Confusion:
    """How often images of one class were taken for another: `counts[label, prediction]`."""

    counts: IntArray  # (num_classes, num_classes)
    classes: Sequence[str]

    @classmethod
    def count(cls, labels: IntArray, predicted: IntArray, classes: Sequence[str]) -> "Confusion":
        """Count labels and best classes (n,), which are indices into `classes`."""
        counts = np.zeros((len(classes), len(classes)), np.int64)
        np.add.at(counts, (labels, predicted), 1)
        return cls(counts, classes)

    @cached_property
    def by_class(self) -> list[ClassResult]:
        """Each class's result, in the order of the classes."""
        right, of_class = self.counts.diagonal().tolist(), self.counts.sum(axis=1).tolist()
        taken_for = self.counts.sum(axis=0).tolist()
        return [
            ClassResult(
                label=label,
                n=of_class[i],
                precision=proportion(right[i], taken_for[i]),
                recall=proportion(right[i], of_class[i]),
                f1=f1_score(right[i], of_class[i] + taken_for[i] - right[i]),
            )
            for i, label in enumerate(self.classes)
        ]

    @property
    def balanced_accuracy(self) -> Estimate:
        """The mean recall of the classes that have images."""
        return balanced_accuracy([c.recall for c in self.by_class if c.recall is not None])

    @property
    def pairs(self) -> list[tuple[int, int, int]]:
        """(label, prediction, images) of wrong answers, the most frequent first."""
        wrong = self.counts.copy()
        np.fill_diagonal(wrong, 0)
        found = [(i, j, int(wrong[i, j])) for i, j in np.argwhere(wrong).tolist()]
        return sorted(found, key=lambda pair: -pair[2])

    def to_json(self) -> dict[str, Any]:
        """Plain values, for --json."""
        return {
            "balanced_accuracy": {
                **self.balanced_accuracy.to_json(),
                "num_classes": self._num_present,
            },
            "classes": [result.to_json() for result in self.by_class],
            "confusion_matrix": self.counts.tolist(),  # a row per label, a column per prediction
            "most_confused": [
                {
                    "label": self.classes[i],
                    "prediction": self.classes[j],
                    "num_images": num,
                    "n": self.by_class[i].n,
                }
                for i, j, num in self.pairs[:NUM_PAIRS]
            ],
        }

    def to_text(self) -> str:
        """For a terminal."""
        mean = self.balanced_accuracy
        parts = [
            f"balanced accuracy {mean.percent:.2f} % (95 %: about {mean.low:.2f} to "
            f"{mean.high:.2f}; mean recall of {self._num_present} classes, {mean.n} images)",
            self._table(),
        ]
        if len(self.classes) <= MAX_MATRIX:
            parts.append(self._matrix())
        if self.pairs:
            parts.append(self._pairs_table())
        return "\n\n".join(parts)

    @property
    def _num_present(self) -> int:
        return sum(result.n > 0 for result in self.by_class)

    def _table(self) -> str:
        shown = self.by_class
        title = "percent, with 95 % intervals"
        if len(shown) > MAX_ROWS:
            present = [result for result in shown if result.f1 is not None]
            shown = sorted(present, key=lambda result: (_percent(result.f1), -result.n))[:MAX_ROWS]
            title += f"; the {len(shown)} of {len(self.classes)} classes with the lowest F1"
        rows = [
            (one_line(c.label), c.n, *(value or "-" for value in (c.precision, c.recall, c.f1)))
            for c in shown
        ]
        headers = ("class", "images", "precision", "recall", "F1")
        return f"{title}:\n" + tabulate(rows, headers, disable_numparse=True)

    def _matrix(self) -> str:
        numbers = range(len(self.classes))
        rows = [
            (one_line(self.classes[i]), i, *(int(num) or "." for num in self.counts[i]))
            for i in numbers
        ]
        align = ("left", "right", *("right" for _ in numbers))
        headers = ("images of", "number", *map(str, numbers))
        table = tabulate(rows, headers, disable_numparse=True, colalign=align)
        return f"confusion matrix, a column per class that images were taken for:\n{table}"

    def _pairs_table(self) -> str:
        rows = [
            (one_line(self.classes[i]), one_line(self.classes[j]), f"{num} of {self.by_class[i].n}")
            for i, j, num in self.pairs[:NUM_PAIRS]
        ]
        headers = ("label", "taken for", "images")
        return "most confused:\n" + tabulate(rows, headers, disable_numparse=True)


def _percent(estimate: Estimate | None) -> float:
    assert estimate is not None
    return estimate.percent
