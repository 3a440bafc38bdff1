"""One run of `irv2 batch`: list, or go on with what was listed; answer what is missing; join."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from irv2.batch.parts import Parts, Row, Work, count_reasons
from irv2.batch.source import Picture, Source, read_names, write_names
from irv2.errors import InputError, UsageError
from irv2.system.files import file_sha256
from irv2.system.progress import Progress


class Answerer(Protocol):
    """What classifies pictures: a bundle here, or servers."""

    model_id: str

    def answers(self, pictures: Iterable[Picture]) -> Iterator[Row]:
        """Yield the row of each picture, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What is in the file at the end."""

    out: str
    num_files: int
    errors: dict[str, int]  # by reason
    model_id: str

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            "out": self.out,
            "n": self.num_files,
            "num_errors": sum(self.errors.values()),
            "errors": self.errors,
            "model_id": self.model_id,
        }

    def to_text(self) -> str:
        """Return one line."""
        line = f"{self.out}: {self.num_files} files, model {self.model_id[:12]}"
        if self.errors:
            reasons = ", ".join(f"{reason} {num}" for reason, num in self.errors.items())
            line += f"; {sum(self.errors.values())} of them with errors: {reasons}"
        return line


def run(source: Source, out: Path, answerer: Answerer, top_k: int, *, as_listed: bool) -> Summary:
    """Classify each file of `source` once, into `out`, and go on with what is there of it.

    With `as_listed`, the files are those of the start. Raises UsageError if what is there is of
    other work, or if the files of `source` are no longer the same.
    """
    with Parts(out).locked() as parts:
        begun = parts.begun()
        if as_listed and not begun:
            raise UsageError("--as-listed", f"no list of files for {out}", "work that was begun")
        names_sha256, num_names = (
            (begun.names_sha256, begun.num_names)
            if begun and as_listed
            else _list(source, parts, is_begun=begun is not None)
        )
        work = Work(
            source=str(source.path.resolve()),
            names_sha256=names_sha256,
            num_names=num_names,
            model_id=answerer.model_id,
            top_k=top_k,
        )
        if begun:
            work.require_same(begun, out)
        if not out.exists():
            _answer(work, parts, answerer)
        parts.join(work)
    return Summary(
        out=str(out), num_files=num_names, errors=count_reasons(out), model_id=work.model_id
    )


def _list(source: Source, parts: Parts, *, is_begun: bool) -> tuple[str, int]:
    """List the source; return the hash and number of names. Where work is begun, its list stays."""
    with TemporaryDirectory(dir=parts.folder, prefix=".sort-") as folder:
        path = Path(folder, "names")
        listed = write_names(source, path)
        if not (is_begun and parts.names.exists()):
            path.replace(parts.names)
    return listed


def _answer(work: Work, parts: Parts, answerer: Answerer) -> None:
    """Write the rows that are missing. Raises InputError if the list of the start was changed."""
    if file_sha256(parts.names) != work.names_sha256:
        raise InputError(
            parts.names, "was changed", "the list of the start", f"remove {parts.folder}"
        )
    missing = parts.missing(work)
    num_done = work.num_names - sum(map(len, missing))
    with Progress("batch", work.num_names, "images", num_done) as bar:
        for stretch in missing:
            names = islice(read_names(parts.names), stretch.start, stretch.stop)
            parts.write(answerer.answers(names), stretch.start, work, bar.advance)
