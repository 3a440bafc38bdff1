"""The pictures that a report shows: what the checkpoint gets most wrong, and what changed."""

import base64
import io
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

import numpy as np

from irv2.data.dataset import ImageFolder, open_split
from irv2.data.hashes import hash_files
from irv2.errors import ImageError
from irv2.images.contact_sheet import thumbnail
from irv2.images.decode import FILE_LIMITS, decode
from irv2.images.orientation import Orientation
from irv2.ledger import Ledger
from irv2.measures.difference import CHANGES, ModelLedger, Row, diff
from irv2.report.html import lacking, section, table, tag
from irv2.report.sources import Published
from irv2.system.text import one_line

JPEG_QUALITY = 85


class Shown(NamedTuple):
    """A picture by its hash, and what stands below it."""

    sha256: str
    lines: Sequence[Element | str]


class Pictures:
    """The images of `data`/val, found by their hashes; without `data`, none.

    Of each gallery the first `number` are shown.
    """

    def __init__(self, data: Path | None, number: int) -> None:
        self._number = number
        self._images = open_split(data, "val", bad_images="skip") if data else None

    def gallery(self, shown: Sequence[Shown], orientation: Orientation) -> Iterator[Element]:
        """Draw the first of them, and say what is not drawn and why."""
        if not shown:
            return
        if self._images is None:
            yield lacking("Pictures: left out, as the report was made without --data.")
            return
        found = [each for each in shown if each.sha256 in self._places]
        if missing := len(shown) - len(found):
            place = one_line(self._images.place.name)
            yield lacking(f"Pictures: {missing} of {len(shown)} are not among those in {place}.")
        figures = [self._figure(self._images, each, orientation) for each in found[: self._number]]
        if figures:
            yield tag("p", f"The first {len(figures)} of {len(shown)}:")
            yield tag("div", *figures, class_="gallery")

    def _figure(self, images: ImageFolder, shown: Shown, orientation: Orientation) -> Element:
        i = self._places[shown.sha256]
        try:
            pixels = decode(images.read(i), FILE_LIMITS, orientation)
        except ImageError as error:
            raise images.named(error, i) from error
        small, encoded = thumbnail(pixels), io.BytesIO()
        small.save(encoded, format="JPEG", quality=JPEG_QUALITY)
        image = tag(
            "img",
            src="data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode(),
            width=str(small.width),
            height=str(small.height),
            alt=images.files[i],
        )
        lines = [tag("span", line) for line in (*shown.lines, images.files[i])]
        return tag("figure", image, tag("figcaption", *lines))

    @cached_property
    def _places(self) -> dict[str, int]:
        assert self._images is not None
        return {sha256: i for i, sha256 in enumerate(hash_files(self._images))}


def worst_section(published: Published, reference: Ledger, pictures: Pictures) -> Element:
    """Show the wrong answers of the checkpoint, those furthest from the label first."""
    classes, wrong = published.bundle.classes, surest_wrong(reference)
    shown = [
        Shown(
            reference.sha256[row],
            (
                f"label {classes[reference.labels[row]]}",
                tag("span", f"answer {classes[reference.top5[row, 0]]}", class_="bad"),
                f"label behind by {'' if is_exact else 'over '}{gap:.2f}",
            ),
        )
        for row, gap, is_exact in wrong
    ]
    intro = (
        f"The checkpoint is wrong on {len(wrong)} of {len(reference)} images. First come those "
        "where the logit of the label is furthest behind the answer's; such pictures are often "
        "labelled wrongly."
    )
    orientation = published.bundle.preprocess.orientation
    return section(3, "Worst pictures", tag("p", intro), *pictures.gallery(shown, orientation))


def surest_wrong(ledger: Ledger) -> list[tuple[int, float, bool]]:
    """Rows of wrong answers: how far the label's logit is behind the best, and if that is exact.

    The largest distance comes first. A ledger has the logits of five classes: the label is at least
    as far behind as the last of them where it is not among them.
    """
    found = []
    for row in np.flatnonzero(~ledger.top1_right).tolist():
        logits = ledger.top5_logits[row]
        place = np.flatnonzero(ledger.top5[row] == ledger.labels[row])
        behind = logits[0] - logits[place[0] if len(place) else -1]
        found.append((row, float(behind), bool(len(place))))
    return sorted(found, key=lambda each: -each[1])


def flips_section(published: Published, reference: Ledger, pictures: Pictures) -> Element:
    """Show, per artefact and backend, the images with another best class than the checkpoint's."""
    bundle = published.bundle
    checkpoint = ModelLedger(name="checkpoint", ledger=reference, classes=bundle.classes)
    counts, parts, seen = [], [], dict[tuple[str, ...], str]()
    for artifact in bundle.artifacts:
        for evidence in artifact.known:
            title = f"{artifact.file} on {evidence.ran_on}"
            ledger = published.answers(artifact, evidence)
            if ledger is None:
                parts.append(lacking(f"{title}: the bundle has no answers of it."))
                continue
            model = ModelLedger(name=title, ledger=ledger, classes=bundle.classes)
            rows = diff(checkpoint, model).rows
            changes = [str(sum(row.change == change for row in rows)) for change in CHANGES]
            counts.append((artifact.file, evidence.ran_on, str(len(rows)), *changes))
            key = tuple(row.sha256 + row.b for row in rows)
            if rows and key in seen:
                parts.append(section(4, title, tag("p", f"The same as {seen[key]}.")))
            elif rows:
                shown = [_flip(row) for row in rows]
                gallery = pictures.gallery(shown, bundle.preprocess.orientation)
                parts.append(section(4, title, *gallery))
            seen.setdefault(key, title)
    headers = ("artefact", "ran on", "another best class", *CHANGES)
    caption = f"Answers other than the checkpoint's, of {len(reference)} images"
    shown_counts = [table(caption, headers, counts, numbers=(2, 3, 4, 5))] if counts else []
    intro = (
        "Images to which an artefact gives another best class than the checkpoint, its "
        "surest answers first; in brackets the margin between the two best logits."
    )
    return section(3, "Flips", tag("p", intro), *shown_counts, *parts)


def _flip(row: Row) -> Shown:
    lines = (
        tag("span", row.change, class_={"lost": "bad", "gained": "good"}.get(row.change, "plain")),
        f"label {row.label}",
        f"checkpoint {row.a} ({row.margin_a:.2f})",
        f"artefact {row.b} ({row.margin_b:.2f})",
    )
    return Shown(row.sha256, lines)
