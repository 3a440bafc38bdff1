"""Lists of labelled images: CSV files with the columns path, label and maybe split.

Paths are relative to the list's folder; other columns are ignored. Without a column split,
VAL_PERCENT of each class are for validation, by the hashes of their paths: the same ones on every
machine.
"""

import csv
import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from irv2.errors import DataError
from irv2.system.text import quoted

logger = logging.getLogger(__name__)

VAL_PERCENT = 15
SPLITS = ("train", "val", "test")
HEADERS = "a first line path,label or path,label,split"
QUOTES = "put a name with a comma in double quotes"

_Found = list[tuple[int, str]]  # lines of a list, and what is wrong there


class Row(NamedTuple):
    """An image of a list; `written` is its label as it stands there."""

    line: int
    path: str
    written: str
    split: str


def is_list(data: Path) -> bool:
    """Whether `data` is named like a list; it may not exist."""
    return data.suffix.lower() == ".csv" and not data.is_dir()


def read_list(path: Path) -> list[Row]:
    """Read a list, and divide it if it has no column split. Raises DataError as `read_rows` does.

    It is read once, unless it has changed, and its files are not looked at.
    """
    if not path.is_file():
        raise DataError(path, "no such file", "a list of images", "see --data, IRV2_DATA")
    status = path.stat()
    return _read_list(path, (status.st_ino, status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=4)
def _read_list(path: Path, _state: tuple[int, ...]) -> list[Row]:
    rows = read_rows(path)
    return rows if not rows or rows[0].split else _divided(path, rows)


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a list; `split` is empty if it has no such column.

    Raises DataError with the first line where something is wrong, and the number of such lines.
    """
    columns, records = _records(path)
    short = [
        (line, f"{len(cells)} columns") for line, cells in records if len(cells) != len(columns)
    ]
    _refuse(path, short, f"{len(columns)}, as in the first line", QUOTES)
    at = {column: columns.index(column) for column in columns}
    rows = [
        Row(
            line, cells[at["path"]], cells[at["label"]], cells[at["split"]] if "split" in at else ""
        )
        for line, cells in records
    ]
    _refuse(
        path, [(row.line, "no path or no label") for row in rows if not row.path or not row.written]
    )
    if "split" in at:
        unknown = [(row.line, f"split {row.split!r}") for row in rows if row.split not in SPLITS]
        _refuse(path, unknown, "train, val or test")
    _refuse(path, _repeated(rows), "each file once", "remove the row")
    _refuse(path, _other_spellings(rows), "one spelling of a class", "correct the labels")
    return rows


def read_paths(path: Path) -> Iterator[str]:
    """Yield the paths of a list of any length, line by line; it needs no column but path.

    Raises DataError at the first line where something is wrong.
    """
    if not path.is_file():
        raise DataError(path, "no such file", "a list of images")
    lines = _lines(path)
    columns = _column_names(next(lines, (1, []))[1])
    if columns.count("path") != 1:
        raise _bad_columns(path, columns, "a first line with a column path")
    at, line = columns.index("path"), 0
    for line, cells in lines:
        if len(cells) != len(columns):
            got, expected = f"{len(cells)} columns", f"{len(columns)}, as in the first line"
            raise _at_line(path, line, got, expected, QUOTES)
        if not cells[at]:
            raise _at_line(path, line, "no path", "one", "")
        yield cells[at]
    if not line:
        raise _no_rows(path)


def _records(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The names of the columns, and each further line that is not empty with its number."""
    records = list(_lines(path))
    columns = _column_names(records[0][1]) if records else []
    if not {"path", "label"} <= set(columns) or len(set(columns)) < len(columns):
        raise _bad_columns(path, columns, HEADERS)
    if len(records) == 1:
        raise _no_rows(path)
    return columns, records[1:]


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the cells of each line that is not empty."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
        except UnicodeDecodeError as error:
            line, kind = _not_utf8(path)
            raise _at_line(path, line, kind, "UTF-8", "save the list as CSV UTF-8") from error
        except csv.Error as error:
            raise _at_line(path, reader.line_num, str(error), "CSV", "check the quotes") from error


def _not_utf8(path: Path) -> tuple[int, str]:
    """Return the number of the first line that is not UTF-8, and what it is."""
    num_good = 0
    with path.open("rb") as file:
        kind = "UTF-16" if file.read(2) in (b"\xff\xfe", b"\xfe\xff") else "not UTF-8"
        file.seek(0)
        with suppress(UnicodeDecodeError):
            for line in file:
                line.decode()
                num_good += 1
    return num_good + 1, kind


def _column_names(cells: list[str]) -> list[str]:
    return [name.strip().lower() for name in cells]


def _bad_columns(path: Path, columns: list[str], expected: str) -> DataError:
    if not columns:
        return _at_line(path, 1, "nothing in the file", expected, "write a row for each image")
    way_out = "separate the columns with commas" if len(columns) < 2 else "add that line"
    return _at_line(path, 1, quoted(",".join(columns), always=True), expected, way_out)


def _no_rows(path: Path) -> DataError:
    return DataError(path, "no rows below its first line", "one for each image")


def _repeated(rows: list[Row]) -> _Found:
    first: dict[str, Row] = {}
    found = []
    for row in rows:
        known = first.setdefault(os.path.normpath(row.path), row)
        if known is not row:
            same = (known.written, known.split) == (row.written, row.split)
            difference = (
                "" if same else f", there {quoted(f'{known.written} {known.split}'.strip())}"
            )
            found.append((row.line, f"{quoted(row.path)} is on line {known.line} too{difference}"))
    return found


def _other_spellings(rows: list[Row]) -> _Found:
    """Labels that differ from an earlier one in case, or in spaces around, alone."""
    first: dict[str, Row] = {}
    found = []
    for row in rows:
        known = first.setdefault(row.written.strip().casefold(), row)
        if known.written != row.written:
            got = f"label {quoted(row.written, always=True)}"
            other = quoted(known.written, always=True)
            found.append((row.line, f"{got}, but {other} on line {known.line}"))
    return found


def _divided(path: Path, rows: list[Row]) -> list[Row]:
    logger.info(
        "%s: no column split; %d %% of each class are for validation, by the hash of the path "
        "(other shares: irv2 data split)",
        path,
        VAL_PERCENT,
    )
    classes: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: hashlib.sha256(row.path.encode()).digest()):
        classes.setdefault(row.written, []).append(row)
    divided = []
    for members in classes.values():
        num_val = max(1, round(len(members) * VAL_PERCENT / 100)) if len(members) > 1 else 0
        divided += [row._replace(split="val") for row in members[:num_val]]
        divided += [row._replace(split="train") for row in members[num_val:]]
    return sorted(divided, key=lambda row: row.line)


def _refuse(path: Path, found: _Found, expected: str = "", way_out: str = "") -> None:
    if found:
        line, got = found[0]
        raise _at_line(path, line, got + and_more(len(found) - 1), expected, way_out)


def and_more(num: int) -> str:
    """Return what a message about the first of several says of the others."""
    return f" (and {num} more)" if num else ""


def _at_line(path: Path, line: int, got: str, expected: str, way_out: str) -> DataError:
    return DataError(f"{path}, line {line}", got, expected, way_out)
