"""What the checkpoint makes of each class: confusion matrix, table with intervals, pairs."""

from collections.abc import Iterator
from xml.etree.ElementTree import Element

from irv2.ledger import Ledger
from irv2.measures.classes import MAX_ROWS, ClassResult, Confusion
from irv2.measures.estimates import Estimate, proportion
from irv2.report.chart import interval_bar
from irv2.report.html import details, section, table, tag

MAX_MATRIX = 20  # classes whose confusion matrix fits on a page
NUM_PAIRS = 15
_HEADERS = ("class", "images", "recall, %", "0 to 100 %", "precision, %", "F1, %")


def classes_section(reference: Ledger, classes: list[str]) -> Element:
    """Describe the answers of a checkpoint to labelled images."""
    confusion = Confusion.count(reference.labels, reference.top5[:, 0], classes)
    parts: list[Element] = [tag("p", _headline(reference, confusion))]
    if len(classes) <= MAX_MATRIX:
        parts.append(_matrix(confusion))
    else:
        text = f"The confusion matrix of {len(classes)} classes has no room on a page: its largest "
        parts.append(tag("p", text + "entries off the diagonal follow."))
    if confusion.pairs:
        parts.append(_pairs(confusion))
    return section(3, "Classes", *parts, *_class_tables(confusion))


def top1(ledger: Ledger) -> Estimate | None:
    """The top-1 error of these answers."""
    return proportion(len(ledger) - int(ledger.top1_right.sum()), len(ledger))


def with_interval(estimate: Estimate | None, digits: int = 1) -> str:
    """A percentage with its interval; a dash where no image could have counted for it."""
    if estimate is None:
        return "-"
    low, high = f"{estimate.low:.{digits}f}", f"{estimate.high:.{digits}f}"
    return f"{estimate.percent:.{digits}f} ({low}-{high})"


def _headline(reference: Ledger, confusion: Confusion) -> str:
    n = len(reference)
    top5 = proportion(n - int(reference.top5_right.sum()), n)
    return (
        f"The checkpoint's answers to {n} labelled images, with exact 95 % intervals: top-1 error "
        f"{with_interval(top1(reference), 2)} %, top-5 error {with_interval(top5, 2)} %. Balanced "
        f"accuracy, with an approximate one: {with_interval(confusion.balanced_accuracy, 2)} %."
    )


def _matrix(confusion: Confusion) -> Element:
    """Each row is a label; the darker a cell, the larger its share of the label's images."""
    names = [tag("span", name, class_="upright") for name in confusion.classes]
    rows: list[list[Element | str]] = []
    for i, counts in enumerate(confusion.counts.tolist()):
        n = max(1, sum(counts))
        cells = [
            tag(
                "span",
                f"{num}" if num else "·",
                class_="share",
                style=f"--share:{100 * num / n:.1f}%",
            )
            for num in counts
        ]
        rows.append([f"{confusion.classes[i]} ({sum(counts)})", *cells])
    caption = "Confusion matrix: a row per label with its images, a column per answer"
    return table(caption, ["label", *names], rows, class_="matrix")


def _pairs(confusion: Confusion) -> Element:
    rows = [
        (
            confusion.classes[i],
            confusion.classes[j],
            f"{num} of {confusion.by_class[i].n}",
            with_interval(proportion(num, confusion.by_class[i].n)),
        )
        for i, j, num in confusion.pairs[:NUM_PAIRS]
    ]
    headers = ("label", "taken for", "images", "share, %")
    return table("Most confused", headers, rows, numbers=(2, 3))


def _class_tables(confusion: Confusion) -> Iterator[Element]:
    results = confusion.by_class
    if len(results) <= 2 * MAX_ROWS:
        yield _class_table("Each class, with exact 95 % intervals", results)
        return
    present = [result for result in results if result.f1 is not None]
    lowest = sorted(present, key=lambda result: result.f1.percent if result.f1 else 0.0)[:MAX_ROWS]
    yield _class_table(f"The {len(lowest)} of {len(results)} classes with the lowest F1", lowest)
    everything = _class_table("Each class, with exact 95 % intervals", results)
    yield details(f"All {len(results)} classes", everything)


def _class_table(caption: str, results: list[ClassResult]) -> Element:
    rows = [
        (
            result.label,
            str(result.n),
            with_interval(result.recall),
            interval_bar(result.recall),
            with_interval(result.precision),
            with_interval(result.f1),
        )
        for result in results
    ]
    return table(caption, _HEADERS, rows, numbers=(1, 2, 4, 5))
