"""The images on which two models differ, from their ledgers, without running either."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from irv2.data.dataset import ImageFolder, open_split
from irv2.data.hashes import hash_files
from irv2.errors import DataError
from irv2.ledger import Ledger
from irv2.system.text import one_line


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLedger:
    """The ledger of a model, by the name the user gave, and its classes if they are known."""

    name: str
    ledger: Ledger
    classes: list[str]

    def label(self, index: int) -> str:
        """The name of a class, or its index if only a ledger is at hand."""
        return self.classes[index] if self.classes else str(index)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """An image with two answers. `file` is None if it was not looked for or not found."""

    sha256: str
    file: Path | None
    label: str
    a: str
    b: str
    margin_a: float  # logits: best minus second best
    margin_b: float
    change: str  # lost, gained, or both wrong

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"file": self.file and str(self.file)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Two models over the `n` images that both have answered."""

    a: str
    b: str
    n: int
    num_only_a: int  # images that the other has not answered
    num_only_b: int
    rows: list[Row]  # surest of A's answers first
    images: ImageFolder | None  # where their files were looked for

    def to_json(self) -> dict[str, Any]:
        """Plain values, for --json."""
        return {
            "a": self.a,
            "b": self.b,
            "n": self.n,
            "num_different": len(self.rows),
            "num_only_a": self.num_only_a,
            "num_only_b": self.num_only_b,
            "images": [row.to_json() for row in self.rows],
        }

    def to_text(self) -> str:
        """For a terminal."""
        counts = {name: sum(row.change == name for row in self.rows) for name in CHANGES}
        lines = [
            f"A: {self.a}",
            f"B: {self.b}",
            f"{len(self.rows)} of {self.n} images have another best class: "
            + ", ".join(f"{num} {name}" for name, num in counts.items()),
        ]
        if self.num_only_a or self.num_only_b:
            lines.append(f"not compared: {self.num_only_a} only in A, {self.num_only_b} only in B")
        if self.rows:
            table = [
                (
                    one_line(r.file or r.sha256[:12]),
                    one_line(r.label),
                    one_line(r.a),
                    one_line(r.b),
                    r.change,
                    f"{r.margin_a:.3f}",
                    f"{r.margin_b:.3f}",
                )
                for r in self.rows
            ]
            headers = ("image", "label", "A", "B", "change", "margin A", "margin B")
            lines += ["", tabulate(table, headers, disable_numparse=True)]
        return "\n".join(lines)


CHANGES = ("lost", "gained", "both wrong")


def diff(a: ModelLedger, b: ModelLedger, data: Path | None = None) -> Difference:
    """Compare two models' best classes; image files are looked for in `data`/val.

    Raises DataError if they have no image in common, or other names for their classes.
    """
    _require_same_classes(a, b)
    row_of_b = {key: row for row, key in enumerate(b.ledger.keys)}
    common = [(i, row_of_b[key]) for i, key in enumerate(a.ledger.keys) if key in row_of_b]
    if not common:
        raise DataError(f"{a.name} and {b.name}", "no image in common", "answers on the same data")
    different = [(i, j) for i, j in common if a.ledger.top5[i, 0] != b.ledger.top5[j, 0]]
    different.sort(key=lambda pair: -float(a.ledger.margins[pair[0]]))
    images = None if data is None else open_split(data, "val", bad_images="skip")
    files = _find_files({a.ledger.sha256[i] for i, _ in different}, images)
    labels = a if a.classes else b
    return Difference(
        a=a.name,
        b=b.name,
        n=len(common),
        num_only_a=len(a.ledger) - len(common),
        num_only_b=len(b.ledger) - len(common),
        rows=[_row(labels, a.ledger, b.ledger, i, j, files) for i, j in different],
        images=images,
    )


def _require_same_classes(a: ModelLedger, b: ModelLedger) -> None:
    """Raise DataError if the classes differ, or a ledger has more of them than the other model."""
    classes = a.classes or b.classes
    largest = max(int(model.ledger.top5.max(initial=0)) for model in (a, b))
    if classes and (largest >= len(classes) or classes != (b.classes or classes)):
        raise DataError(f"{a.name} and {b.name}", "they have other classes", "the same ones")


def _find_files(wanted: set[str], images: ImageFolder | None) -> dict[str, Path]:
    """Where images of these hashes lie: hash -> path."""
    if images is None or not wanted:
        return {}
    hashes = enumerate(hash_files(images))
    return {sha256: images.path(i) for i, sha256 in hashes if sha256 in wanted}


def _row(labels: ModelLedger, a: Ledger, b: Ledger, i: int, j: int, files: dict[str, Path]) -> Row:
    label, best_a, best_b = int(a.labels[i]), int(a.top5[i, 0]), int(b.top5[j, 0])
    change = "lost" if best_a == label else "gained" if best_b == label else "both wrong"
    return Row(
        sha256=a.sha256[i],
        file=files.get(a.sha256[i]),
        label=labels.label(label),
        a=labels.label(best_a),
        b=labels.label(best_b),
        margin_a=float(a.margins[i]),
        margin_b=float(b.margins[j]),
        change=change,
    )
