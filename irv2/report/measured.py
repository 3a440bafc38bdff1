"""Benchmarks of this machine or another, as `irv2 bench ... --json` printed them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from irv2.errors import InputError
from irv2.report.html import facts, lacking, section, table

_TITLES = {  # what only this benchmark's output has
    "bare_loop_images_per_s": "Server",
    "loads": "Server under load",
    "gflop_per_image": "Engines",
}
_MISSING = (
    "Server: not measured (irv2 bench serve BUNDLE --json > serve.json, then --bench serve.json)."
)


def read_benchmark(path: Path) -> dict[str, Any]:
    """Read the output of a benchmark; raises InputError for anything else."""
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(path, "is not JSON", "the output of irv2 bench ... --json") from error
    if not isinstance(found, dict) or not isinstance(found.get("machine"), dict):
        raise InputError(path, "names no machine", "the output of irv2 bench ... --json")
    return found


def measured_chapter(benchmarks: dict[str, dict[str, Any]], id_: str) -> Element:
    """Show benchmarks by the names of their files, or say how to get one of the server."""
    parts = [_benchmark(name, found) for name, found in benchmarks.items()]
    if not any(
        "requests_per_s" in json.dumps(found) or "loads" in found for found in benchmarks.values()
    ):
        parts.append(lacking(_MISSING))
    return section(2, "Measured", *parts, id_=id_)


def _benchmark(name: str, found: dict[str, Any]) -> Element:
    title = next((title for key, title in _TITLES.items() if key in found), "Benchmark")
    parts: list[Element] = []
    if found.get("void"):
        parts.append(
            lacking("Void: the same case, measured twice, differed too much for any comparison.")
        )
    return section(3, f"{title} ({name})", *parts, *_tables(found))


def _tables(found: dict[str, Any]) -> Iterator[Element]:
    """Plain values first, then a table for each group of cases."""
    plain = [(_words(key), _text(value)) for key, value in _flat(found) if not _is_group(value)]
    yield facts("Conditions and results", plain)
    for key, value in found.items():
        if _is_group(value):
            cases = value.items() if isinstance(value, dict) else enumerate(value, 1)
            rows = [(str(name), dict(_flat(case))) for name, case in cases]
            columns = list(dict.fromkeys(column for _, row in rows for column in row))
            cells = [(name, *(_text(row.get(column)) for column in columns)) for name, row in rows]
            headers = ("case", *map(_words, columns))
            yield table(_words(key), headers, cells, numbers=range(1, len(headers)))


def _is_group(value: object) -> bool:
    """Whether these are cases: named or numbered objects."""
    values = list(
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    )
    return bool(values) and all(isinstance(each, dict) for each in values)


def _flat(found: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the values, those of an object inside under both names."""
    for key, value in found.items():
        if isinstance(value, dict) and not _is_group(value):
            yield from ((f"{key} {inner}", each) for inner, each in value.items())
        else:
            yield key, value


def _words(key: str) -> str:
    return key.replace("_", " ")


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
