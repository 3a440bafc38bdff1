"""What `irv2 doctor` finds, for people and for programs."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from irv2 import __version__

Level: TypeAlias = Literal["ok", "note", "problem"]


class Finding(NamedTuple):
    """One line: what was looked at, what was found there, and the way out where there is one."""

    level: Level
    subject: str
    found: str
    way_out: str = ""


def ok(subject: str, found: str) -> Finding:
    """As it should be."""
    return Finding("ok", subject, found)


def note(subject: str, found: str, way_out: str = "") -> Finding:
    """Something worth knowing, with which everything that is installed works."""
    return Finding("note", subject, found, way_out)


def problem(subject: str, found: str, way_out: str) -> Finding:
    """Something that makes a program fail, or unfit for use."""
    return Finding("problem", subject, found, way_out)


def late(subject: str, error: str) -> Finding:
    """Something that did not answer in time; a problem only where all else is at rest."""
    return note(subject, error, "--timeout-s allows more")


@dataclass(frozen=True, slots=True)
class Report:
    """All findings, in the order of the report."""

    findings: list[Finding]

    @property
    def exit_code(self) -> int:
        """1 if there is a problem."""
        return int(any(each.level == "problem" for each in self.findings))

    def to_json(self) -> dict[str, Any]:
        """The findings as objects."""
        return {
            "version": __version__,
            "problems": sum(each.level == "problem" for each in self.findings),
            "findings": [each._asdict() for each in self.findings],
        }

    def to_text(self) -> str:
        """One line each, for a terminal; without tabulate, which may be what is missing."""
        width = max(len(each.subject) for each in self.findings)
        lines = []
        for level, subject, found, way_out in self.findings:
            text = " ".join(f"{found}; {way_out}".split() if way_out else found.split())
            lines.append(f"{level:<7}  {subject:<{width}}  {text}")
        return "\n".join(lines)
