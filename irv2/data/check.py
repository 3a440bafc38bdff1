"""`irv2 data check`: what a data set holds, and what in it would make a training wrong."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

from irv2.data.copies import group_copies
from irv2.data.dataset import ImageFolder, open_unsplit, splits_of, unread_split
from irv2.data.facts import Facts, look_at
from irv2.images.contact_sheet import MAX_PICTURES, Tile, draw_sheet
from irv2.images.decode import FILE_LIMITS, decode
from irv2.system.text import one_line, quoted

IMBALANCE = 10  # times as many images as another class has: worth a remark
SHOWN_GROUPS = 10  # of copies, in the text; the JSON has them all
UNSPLIT = "all"


class _Seen(NamedTuple):
    """One image, where it is and what it is."""

    folder: ImageFolder
    position: int  # in the folder
    split: str
    label: str
    facts: Facts

    @property
    def name(self) -> str:
        file = self.folder.files[self.position]
        return file if self.folder.list_path else f"{self.split}/{file}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The images of a class, or of all."""

    images: dict[str, int]  # split -> images
    unreadable: int
    formats: dict[str, int]
    smallest: str  # WIDTHxHEIGHT, by the number of pixels
    median: str
    largest: str
    grey: int
    alpha: int
    cmyk: int
    turned: int  # by EXIF
    copies: int  # beyond the first of each picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was found; `wrong` says why training should not start, `remarks` what to know of."""

    data: str
    classes: dict[str, Summary]
    all: Summary
    unreadable: list[dict[str, str]]  # file, problem
    across_splits: list[list[str]]  # copies of one picture
    two_labels: list[list[str]]
    within_splits: list[list[str]]  # other copies
    wrong: list[str]
    remarks: list[str]

    @property
    def exit_code(self) -> int:
        """1 where training would be wrong."""
        return 1 if self.wrong else 0

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return asdict(self)

    def to_text(self) -> str:
        """Return the table of the classes, what was found in which files, and the verdict."""
        splits = list(self.all.images)
        headers = ["class", *splits, "unreadable", "formats", "smallest", "median", "largest"]
        headers += ["grey", "alpha", "CMYK", "turned", "copies"]
        rows = [*self.classes.items(), ("all", self.all)]
        table = [_row(name, summary, splits) for name, summary in rows]
        lines = [tabulate(table, headers=headers, disable_numparse=True), ""]
        lines += [f"unreadable: {each['file']}: {each['problem']}" for each in self.unreadable]
        lines += _groups_text("in several splits", self.across_splits)
        lines += _groups_text("under two labels", self.two_labels)
        lines += _groups_text("copies in one split", self.within_splits)
        lines += [f"note: {remark}" for remark in self.remarks]
        lines += [f"wrong: {reason}" for reason in self.wrong] or ["nothing wrong was found"]
        return "\n".join(lines)


def check(data: Path, sheet_path: Path | None = None) -> Report:
    """Look at every image of a data folder, of shards or of a list, or of one not divided yet.

    `sheet_path` gets a picture of copies that make something wrong, then of images of each class.
    Raises DataError if `data` is none of these.
    """
    splits = splits_of(data)
    folders = {split: unread_split(data, split) for split in splits}
    if not splits:
        folders = {UNSPLIT: open_unsplit(data)}
    seen = [
        _Seen(folder, i, split, folder.classes[folder.labels[i]], facts)
        for (split, folder), found in zip(
            folders.items(), look_at(list(folders.values())), strict=True
        )
        for i, facts in enumerate(found)
    ]
    report = _report(data, folders, seen)
    if sheet_path is not None:
        _write_sheet(sheet_path, report, seen)
    return report


def _report(data: Path, folders: dict[str, ImageFolder], seen: list[_Seen]) -> Report:
    splits = list(folders)
    pictures: dict[int, list[_Seen]] = {}
    for number, each in zip(
        group_copies([each.facts for each in seen]).tolist(), seen, strict=True
    ):
        pictures.setdefault(number, []).append(each)
    copies = [group for group in pictures.values() if len(group) > 1]
    across, labels, within = [], [], []
    for group in copies:
        is_across = len({each.split for each in group}) > 1
        has_labels = len({each.label for each in group}) > 1
        across += [group] * is_across
        labels += [group] * has_labels
        within += [group] * (not is_across and not has_labels)
    surplus = Counter(each.label for group in copies for each in group[1:])
    names = sorted({name for folder in folders.values() for name in folder.classes})
    by_class: dict[str, list[_Seen]] = {name: [] for name in names}
    for each in seen:
        by_class[each.label].append(each)
    classes = {
        label: _summary(members, splits, surplus[label]) for label, members in by_class.items()
    }
    unreadable = [each for each in seen if each.facts.problem]
    wrong = [
        *_about_classes(data, folders, classes),
        *([f"{len(unreadable)} images can't be read"] if unreadable else []),
        *([f"{len(across)} pictures are in more than one split"] if across else []),
        *([f"{len(labels)} pictures are under more than one label"] if labels else []),
    ]
    total = _summary(seen, splits, surplus.total())
    return Report(
        data=str(data),
        classes=classes,
        all=total,
        unreadable=[
            {"file": one_line(each.name), "problem": each.facts.problem} for each in unreadable
        ],
        across_splits=_names(across),
        two_labels=_names(labels),
        within_splits=_names(within),
        wrong=wrong,
        remarks=list(_remarks(splits, classes, total)),
    )


def _summary(members: Sequence[_Seen], splits: Sequence[str], copies: int) -> Summary:
    num = Counter(each.split for each in members)
    good = [each.facts for each in members if not each.facts.problem]
    sizes = sorted((facts.width * facts.height, facts.width, facts.height) for facts in good)
    named = [f"{width}x{height}" for _, width, height in sizes]
    return Summary(
        images={split: num[split] for split in splits},
        unreadable=len(members) - len(good),
        formats=dict(Counter(facts.format for facts in good).most_common()),
        smallest=named[0] if named else "",
        median=named[(len(named) - 1) // 2] if named else "",
        largest=named[-1] if named else "",
        grey=sum(facts.is_grey for facts in good),
        alpha=sum(facts.has_alpha for facts in good),
        cmyk=sum(facts.mode == "CMYK" for facts in good),
        turned=sum(facts.orientation != 1 for facts in good),
        copies=copies,
    )


def _about_classes(
    data: Path, folders: dict[str, ImageFolder], classes: dict[str, Summary]
) -> Iterator[str]:
    """Say what about splits and classes keeps a training from being right."""
    for split, folder in folders.items():
        empty = [name for name in folder.classes if not classes[name].images[split]]
        if empty:
            yield f"classes of {split} without images: {', '.join(map(quoted, empty))}"
    for split in ("train", "val"):
        if split not in folders:
            way_out = f": divide it with irv2 data split {data} OUT" if UNSPLIT in folders else ""
            yield f"there is no {split}{way_out}"
            return
    for split in folders:
        strange = [
            name for name, row in classes.items() if row.images[split] and not row.images["train"]
        ]
        if strange:
            yield f"classes of {split} are not in train: {', '.join(map(quoted, strange))}"
    if sum(bool(row.images["train"]) for row in classes.values()) == 1:
        yield "train has only one class: every answer would be right"


def _remarks(splits: Sequence[str], classes: dict[str, Summary], total: Summary) -> Iterator[str]:
    first = splits[0]
    missing = [name for name, row in classes.items() if "val" in splits and not row.images["val"]]
    if missing:
        yield f"classes without images in val: {', '.join(map(quoted, missing))}"
    sizes = {name: row.images[first] for name, row in classes.items() if row.images[first]}
    largest = max(sizes, key=sizes.__getitem__, default="")
    smallest = min(sizes, key=sizes.__getitem__, default="")
    if sizes and sizes[largest] >= IMBALANCE * sizes[smallest]:
        yield (
            f"the largest class of {first}, {quoted(largest)}, has {sizes[largest]} images, the "
            f"smallest, {quoted(smallest)}, {sizes[smallest]}"
        )
    if total.turned:
        yield (
            f"{total.turned} images are turned by their EXIF orientation; a network of orientation "
            "`stored` sees them lying"
        )


def _names(groups: list[list[_Seen]]) -> list[list[str]]:
    return [[one_line(each.name) for each in group] for group in groups]


def _row(name: str, summary: Summary, splits: Sequence[str]) -> list[object]:
    formats = ", ".join(f"{format} {num}" for format, num in summary.formats.items())
    return [
        quoted(name),
        *(summary.images[split] for split in splits),
        summary.unreadable,
        formats,
        *(summary.smallest, summary.median, summary.largest),
        *(summary.grey, summary.alpha, summary.cmyk, summary.turned, summary.copies),
    ]


def _groups_text(title: str, groups: list[list[str]]) -> list[str]:
    lines = [f"{title}: {' = '.join(group)}" for group in groups[:SHOWN_GROUPS]]
    more = len(groups) - SHOWN_GROUPS
    return lines + ([f"{title}: and {more} more"] if more > 0 else [])


def _write_sheet(path: Path, report: Report, seen: Sequence[_Seen]) -> None:
    """Draw the wrong groups first, then images of each class in turn."""
    wrong = {name for group in (*report.across_splits, *report.two_labels) for name in group}
    good = [each for each in seen if not each.facts.problem]
    first = [each for each in good if one_line(each.name) in wrong]
    rank: Counter[str] = Counter()
    turns = []
    for each in good:
        turns.append((rank[each.label], each.label))
        rank[each.label] += 1
    order = sorted(range(len(good)), key=turns.__getitem__)
    chosen = [*first, *(good[i] for i in order if one_line(good[i].name) not in wrong)]
    tiles = (
        Tile(
            decode(each.folder.read(each.position), FILE_LIMITS),
            lines=(quoted(each.label), one_line(each.name)),
            colour="#b00020" if one_line(each.name) in wrong else "#444444",
        )
        for each in chosen[:MAX_PICTURES]
    )
    draw_sheet(report.data, tiles, path)
