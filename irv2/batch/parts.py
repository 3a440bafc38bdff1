"""The result: rows in parts while the work goes on, in one Parquet file at its end.

A part holds the rows of a stretch of names; its own name is the position of the first. It appears
whole, by rename. So the parts are the journal: what they do not hold is still to do.
"""

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, NamedTuple, Self

import pyarrow as pa
import pyarrow.parquet as pq

from irv2.errors import InputError, Irv2Error, UsageError
from irv2.results import Result
from irv2.system.files import GO_ON, explain_full_disk, left_beside, try_lock, write_atomically
from irv2.system.progress import Progress

# How much is done again after a kill, at most: a minute's work or so many rows.
PART_S, PART_ROWS = 60.0, 16_384
ROW_GROUP_ROWS = 65_536  # of the file at the end
CODEC = "zstd"
KEY = b"irv2.batch"  # of the work, in the metadata of parts and file
_COLUMNS = [
    ("file", pa.string()),
    ("sha256", pa.string()),
    ("classes", pa.list_(pa.string())),
    ("probabilities", pa.list_(pa.float32())),
    ("error", pa.string()),
    ("reason", pa.string()),
    ("orientation", pa.uint8()),
    ("model_id", pa.string()),
]


class Row(NamedTuple):
    """A picture's name, the hash of its bytes (empty: unread) and the answer."""

    name: str
    sha256: str
    result: Result


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What decides every row of a result; work that goes on must be the same."""

    source: str
    names_sha256: str
    num_names: int
    model_id: str
    top_k: int

    def require_same(self, begun: "Work", where: Path) -> None:
        """Raise UsageError, which names the first difference, unless this is the work `begun`."""
        for name, mine, its in (
            ("source", self.source, begun.source),
            ("model", self.model_id[:12], begun.model_id[:12]),
            ("--top-k", str(self.top_k), str(begun.top_k)),
        ):
            if mine != its:
                got, expected = f"was begun with {name} {its}", f"the same, not {mine}"
                raise UsageError(where, got, expected, "name another OUT to begin anew")
        if self.names_sha256 != begun.names_sha256:
            got = f"{self.num_names} files now, not the {begun.num_names} of the start of {where}"
            if self.num_names == begun.num_names:
                got = f"other files now than at the start of {where}, as many as then"
            way_out = "pass --as-listed to go on with those, or name another OUT to begin anew"
            raise UsageError(self.source, got, "the same", way_out)


@dataclass(slots=True)
class _Part:
    """Rows on their way to the disk."""

    start: int
    rows: list[Row] = field(default_factory=list)
    begun_at: float = field(default_factory=lambda: time.monotonic())

    def is_due(self) -> bool:
        return len(self.rows) >= PART_ROWS or time.monotonic() - self.begun_at >= PART_S


class Parts:
    """The folder OUT.parquet.parts beside OUT.parquet, and that file in the end."""

    def __init__(self, out: Path) -> None:
        self.out, self.folder = out, out.with_name(f"{out.name}.parts")
        self.names = self.folder / "_names.csv"  # Spark and pyarrow skip what begins so

    @contextmanager
    def locked(self) -> Iterator[Self]:
        """Make the folder and keep other processes out; remove it if no part is left in it."""
        self.folder.mkdir(exist_ok=True)
        lock = self.folder / "_lock"
        with lock.open("w") as file:
            if not try_lock(file) or not _is_at(file, lock):
                raise UsageError(
                    self.out, "another irv2 batch is writing it", "one at a time", "wait for it"
                )
            self._remove_what_a_kill_left()
            try:
                yield self
            finally:
                if not self._paths():
                    self.names.unlink(missing_ok=True)
                    lock.unlink()
                    with suppress(OSError):  # files of others
                        self.folder.rmdir()

    def begun(self) -> Work | None:
        """Return the work whose result, or part of it, is there. Raises InputError for others."""
        if self.out.exists() and not self.out.is_file():  # a pipe would be waited for
            raise UsageError(self.out, "is no file", "a file, or a new name")
        paths = [self.out] if self.out.exists() else self._paths()
        return _work_of(paths[0]) if paths else None

    def missing(self, work: Work) -> list[range]:
        """Return the stretches of names without rows.

        Raises InputError for a part that is damaged, of other work, or with rows of the part
        before it, as where two computers wrote at once on a disk without locks.
        """
        found, done = [], 0
        for path in self._paths():
            if _work_of(path) != work:
                raise InputError(path, "is of other work", "parts of one", "remove it")
            start = int(path.stem.removeprefix("part-"))
            if start < done:
                got = f"begins at row {start}, and the part before it ends at {done}"
                way_out = "remove it to have its pictures classified again"
                raise InputError(path, got, "each row in one part", way_out)
            if start > done:
                found.append(range(done, start))
            done = start + _opened(path).metadata.num_rows
        return [*found, range(done, work.num_names)] if done < work.num_names else found

    def write(
        self, rows: Iterable[Row], start: int, work: Work, told: Callable[[int], None]
    ) -> None:
        """Write the rows from position `start` on, including those that came before an error.

        `told` gets the number of rows that came, now and then.
        """
        part = _Part(start)
        with explain_full_disk(self.out, GO_ON):
            try:
                for row in rows:
                    part.rows.append(row)
                    told(1)
                    if part.is_due():
                        self._write_part(part, work)
                        part = _Part(part.start + len(part.rows))
            finally:
                if part.rows:
                    self._write_part(part, work)

    def join(self, work: Work) -> None:
        """Join the parts to the file at the end, if it is not there yet, and remove them.

        Raises Irv2Error if a row is missing; the same command makes it.
        """
        if not self.out.exists():
            if missing := self.missing(work):
                got = f"{sum(map(len, missing))} rows are missing, the first is {missing[0].start}"
                raise Irv2Error(self.out, got, f"all {work.num_names}", GO_ON)
            with explain_full_disk(self.out, GO_ON):
                write_atomically(self.out, lambda temporary: self._join_into(temporary, work))
        for path in self._paths():
            path.unlink()

    def _write_part(self, part: "_Part", work: Work) -> None:
        table = _table(part.rows, work)
        path = self.folder / f"part-{part.start:012}.parquet"
        write_atomically(
            path, lambda temporary: pq.write_table(table, temporary, compression=CODEC)
        )

    def _join_into(self, path: Path, work: Work) -> None:
        with (
            pq.ParquetWriter(path, _schema(work), compression=CODEC) as writer,
            Progress("join", work.num_names, "rows") as bar,
        ):
            pending: list[pa.Table] = []
            for part in self._paths():
                pending.append(pq.read_table(part))
                bar.advance(len(pending[-1]))
                if sum(map(len, pending)) >= ROW_GROUP_ROWS:
                    writer.write_table(pa.concat_tables(pending))
                    pending = []
            if pending:
                writer.write_table(pa.concat_tables(pending))

    def _remove_what_a_kill_left(self) -> None:
        for sorting in self.folder.glob(".sort-*"):
            shutil.rmtree(sorting)
        for path in [*self.folder.glob(".part-*.tmp"), *left_beside(self.out)]:
            path.unlink()

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.parquet"))


def _is_at(file: IO[str], path: Path) -> bool:
    """Whether an open file still lies at `path`, and was not removed, or made anew by another."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def count_reasons(out: Path) -> dict[str, int]:
    """Count the errors of a finished file by reason."""
    batches = _opened(out).iter_batches(ROW_GROUP_ROWS, columns=["reason"])
    reasons = Counter[str](
        reason for batch in batches for reason in batch.column(0).drop_null().to_pylist()
    )
    return dict(sorted(reasons.items()))


def _table(rows: Sequence[Row], work: Work) -> pa.Table:
    results = [row.result for row in rows]
    errors = [result.error for result in results]
    columns = {
        "file": [_utf8(row.name) for row in rows],
        "sha256": [row.sha256 or None for row in rows],
        "classes": [[s.label for s in r.scores] if not r.error else None for r in results],
        "probabilities": [
            [s.probability for s in r.scores] if not r.error else None for r in results
        ],
        "error": [_utf8(str(e).removeprefix(f"{e.what}: ")) if e else None for e in errors],
        "reason": [str(error.reason) if error else None for error in errors],
        "orientation": [result.orientation for result in results],
        "model_id": [work.model_id] * len(rows),
    }
    return pa.table(columns, schema=_schema(work))


def _schema(work: Work) -> pa.Schema:
    return pa.schema(_COLUMNS, metadata={KEY: json.dumps(asdict(work)).encode()})


def _utf8(name: str) -> str:
    r"""Write the bytes of a name that are not UTF-8 as \xff."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _work_of(path: Path) -> Work:
    metadata = _opened(path).schema_arrow.metadata or {}
    try:
        return Work(**json.loads(metadata[KEY]))
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(
            path, "exists", "a new file, or one of irv2 batch", "name another"
        ) from error


def _opened(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        way_out = "remove it to have its pictures classified again"
        raise InputError(path, f"can't be read ({error})", "Parquet", way_out) from error
