"""`irv2 data split`: one set of labelled pictures divided into train, val and maybe test.

Which side a picture is on follows from the contents of all files and a seed: the same everywhere,
whatever the files are called. Copies of one picture (irv2/data/copies.py) are on one side.
"""

import csv
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tabulate import tabulate

from irv2.data.copies import group_copies
from irv2.data.dataset import BadImages, ImageFolder, open_unsplit
from irv2.data.facts import Facts, look_at, refuse_unreadable
from irv2.data.lists import SPLITS, is_list
from irv2.errors import DataError, InputError
from irv2.images.decode import EXTENSIONS
from irv2.system.files import is_hidden, new_folder, write_atomically
from irv2.system.progress import progress
from irv2.system.text import one_line, quoted

Link = Literal["hard", "symbolic", "copy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """What a split left; counts are of images."""

    out: str
    seed: int
    num_images: int
    num_copies: int  # images beyond the first of each picture
    classes: dict[str, dict[str, int]]  # class -> split -> images
    too_small: list[str]  # classes that are not in every split

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return asdict(self)

    def to_text(self) -> str:
        """Return a table of the classes, and lines about what needs a look."""
        splits = list(next(iter(self.classes.values())))
        total = {split: sum(row[split] for row in self.classes.values()) for split in splits}
        rows = [*self.classes.items(), ("all", total)]
        table = [[one_line(name), *(row[split] for split in splits)] for name, row in rows]
        lines = [tabulate(table, headers=["class", *splits], disable_numparse=True)]
        if self.num_copies:
            lines.append(
                f"{self.num_copies} images are copies of others, on the same side as these"
            )
        if self.too_small:
            named = ", ".join(map(quoted, self.too_small))
            lines.append(f"too few different pictures for every split: {named}")
        if len(self.classes) == 1:
            lines.append("one class only: every answer of a network will be right")
        return "\n".join([*lines, f"{self.num_images} images in {self.out}"])


def split(
    source: Path,
    out: Path,
    shares: Mapping[str, float],
    *,
    seed: int = 0,
    link: Link = "hard",
    bad_images: BadImages = "error",
) -> Division:
    """Divide `source`, a folder of class folders or a list, into the new `out`.

    `shares` are those of val and maybe test, in percent. `out` becomes a data folder, or, if it is
    named `.csv`, a list; it appears whole or not at all. Raises DataError if `source` is no such
    thing, if `out` exists, or if an image can't be read (with `bad_images` skip these are left
    out).
    """
    if out.exists() or out.is_symlink():
        raise DataError(out, "already exists", "a new folder or list", "pass another OUT")
    images = open_unsplit(source)
    [facts] = look_at([images])
    readable = refuse_unreadable(images, facts, bad_images)
    images, facts = images.subset(readable), [facts[i] for i in readable]
    groups = group_copies(facts)
    sides = choose_sides(images.labels.tolist(), groups.tolist(), facts, shares, seed)
    if is_list(out):
        _write_list(out, images, sides)
    else:
        _write_folders(out, images, facts, sides, link)
    num = Counter(zip(images.labels.tolist(), sides, strict=True))
    classes = {
        name: {side: num[label, side] for side in ("train", *shares)}
        for label, name in enumerate(images.classes)
    }
    return Division(
        out=str(out),
        seed=seed,
        num_images=len(images),
        num_copies=len(groups) - len(set(groups.tolist())),
        classes=classes,
        too_small=[name for name, row in classes.items() if not all(row.values())],
    )


def choose_sides(
    labels: Sequence[int],
    groups: Sequence[int],
    facts: Sequence[Facts],
    shares: Mapping[str, float],
    seed: int,
) -> list[str]:
    """Return the split of each image. Copies go together, with the class of the first of them.

    Of each class, pictures are taken in the order of a hash of seed and content until val, and then
    test, has its share, at least one; the last picture of a class is left to train.
    """
    members: dict[int, list[int]] = {}
    for i in sorted(range(len(labels)), key=lambda i: (facts[i].sha256, labels[i])):
        members.setdefault(groups[i], []).append(i)
    pictures: dict[int, list[list[int]]] = {}  # class -> its pictures, each all of its copies
    for copies in members.values():
        pictures.setdefault(labels[copies[0]], []).append(copies)
    sides = ["train"] * len(labels)
    for of_class in pictures.values():
        of_class.sort(key=lambda copies: _rank(seed, facts[copies[0]].sha256))
        num_images = sum(map(len, of_class))
        for side, percent in shares.items():
            wanted = max(1, round(num_images * percent / 100))
            for copies in _taken(of_class, wanted):
                of_class.remove(copies)
                for i in copies:
                    sides[i] = side
    return sides


def _rank(seed: int, sha256: str) -> bytes:
    return hashlib.sha256(f"{seed}:{sha256}".encode()).digest()


def _taken(pictures: list[list[int]], wanted: int) -> list[list[int]]:
    """Choose pictures of `wanted` images together, or fewer; the smallest if each has more."""
    taken: list[list[int]] = []
    num_images = 0
    for copies in pictures[:-1]:
        if num_images + len(copies) <= wanted:
            taken.append(copies)
            num_images += len(copies)
    return taken or sorted(pictures[:-1], key=len)[:1]


def _write_list(out: Path, images: ImageFolder, sides: Sequence[str]) -> None:
    """Write a list whose paths are relative to its folder, as far as those of the source are."""
    here = out.absolute().parent

    def write(path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(("path", "label", "split"))
            for i, side in enumerate(sides):
                file_path = images.files[i]
                if not Path(file_path).is_absolute():
                    file_path = os.path.relpath(images.path(i).absolute(), here)
                rows.writerow((file_path, images.classes[images.labels[i]], side))

    write_atomically(out, write)


def _write_folders(
    out: Path, images: ImageFolder, facts: Sequence[Facts], sides: Sequence[str], link: Link
) -> None:
    for name in images.classes:
        if "/" in name or is_hidden(name):
            got, expected = f"class {quoted(name, always=True)}", "names that a folder can have"
            raise DataError(out, got, expected, "write a list instead: OUT.csv")
    place = {"hard": _hard_link, "symbolic": _symbolic_link, "copy": _copy}[link]
    written: set[str] = set()
    with new_folder(out, lambda: images.num_bytes() if link == "copy" else None) as folder:
        for side in dict.fromkeys(side for side in SPLITS if side in sides):
            for name in images.classes:
                (folder / side / name).mkdir(parents=True)
        for i in progress(range(len(images)), f"write {out}", len(images), "images"):
            name = images.classes[images.labels[i]]
            file = _free_name(name, images.path(i).name, facts[i].format, written)
            place(images.path(i), folder / sides[i] / file)
        for empty in [path for path in folder.glob("*/*") if not any(path.iterdir())]:
            empty.rmdir()


def _free_name(class_name: str, name: str, format: str, written: set[str]) -> str:
    """Return CLASS/NAME with an image's extension, and a number if another file has that name."""
    stem, suffix = os.path.splitext(name)  # noqa: PTH122 (names alone)
    stem = stem.lstrip(".") or "image"  # of a list; hidden files would not be read
    if suffix.lower() not in EXTENSIONS:
        stem, suffix = stem + suffix, f".{format.lower()}"
    free, number = f"{class_name}/{stem}{suffix}", 2
    while free in written:
        free, number = f"{class_name}/{stem}-{number}{suffix}", number + 1
    written.add(free)
    return free


def _hard_link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source.resolve())
    except OSError as error:
        way_out = "pass --link symbolic or --link copy"
        got = f"can't be linked ({error.strerror})"
        raise InputError(source, got, "OUT on the same disk", way_out) from error


def _symbolic_link(source: Path, target: Path) -> None:
    target.symlink_to(source.resolve())


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
