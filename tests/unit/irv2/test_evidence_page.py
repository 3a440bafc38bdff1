"""docs/evidence.md, the specification of a bundle's evidence: each example does what it says."""

import copy
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from project import ROOT
from tiny_bundle import edit, write_tiny_bundle

from irv2.errors import BundleError
from irv2.manifest import MANIFEST, read_manifest
from irv2.runners import choose
from irv2.runners.choose import open_best

PAGE = (ROOT / "docs" / "evidence.md").read_text()
KIND = r"on a processor with `(\w+)` (?:it|this one|the example) is "
SERVED = re.compile(KIND + r"served on `([\w-]+)`, chosen by `(.*)`\.$", re.IGNORECASE)
NOT_SERVED = re.compile(KIND + r"not served: `(.*)`\.$", re.IGNORECASE)
REFUSED = re.compile(r"refused when it is read, with the place: `(.*?)`")


class Example(NamedTuple):
    """The text that says what becomes of it, and the changes of the page's first example."""

    says: str
    changes: list[dict[str, Any]]


def examples() -> tuple[dict[str, Any], list[Example]]:
    """The page's first example, and all with the last line of text next to each."""
    _, first, after, *others = re.split(r"```(?:json)?\n", PAGE)
    of_first = after.strip().split("\n\n")[0]
    found = [Example(of_first, [])]
    for before, block in zip([after, *others[1::2]], others[::2], strict=False):
        found.append(Example(before.strip().rsplit("\n", 1)[-1], json.loads(block)))
    return json.loads(first), found


FIRST, EXAMPLES = examples()


def changed(changes: list[dict[str, Any]]) -> dict[str, Any]:
    """The first example after a JSON Patch (RFC 6902) of the operations that the page has."""
    found = copy.deepcopy(FIRST)
    for change in changes:
        parent, key = at(found, change["path"])
        if change["op"] == "copy":
            source, index = at(found, change["from"])
            parent.insert(key, copy.deepcopy(source[index]))
        elif change["op"] == "remove":
            del parent[key]
        else:
            assert change["op"] == "replace"
            assert parent[key] != change["value"]
            parent[key] = change["value"]
    return found


def at(document: Any, pointer: str) -> tuple[Any, Any]:
    """What a JSON pointer leads to: its parent and the key or index there."""
    *path, last = (int(part) if part.isdecimal() else part for part in pointer.split("/")[1:])
    for part in path:
        document = document[part]
    return document, last


def written(folder: Path, example: Example) -> Path:
    """A bundle whose only artefact has the example's evidence."""
    bundle = write_tiny_bundle(folder)
    edit(bundle, lambda manifest: manifest["artifacts"][0].update(changed(example.changes)))
    return bundle


def those(pattern: re.Pattern[str]) -> list[Any]:
    """The examples of which the page says this, named by their changes."""
    found = [(example, pattern.search(example.says)) for example in EXAMPLES]
    return [
        pytest.param(example, *match.groups(), id=json.dumps(example.changes))
        for example, match in found
        if match
    ]


def test_the_page_says_of_every_example_what_becomes_of_it():
    assert len(EXAMPLES) == PAGE.count("```json") >= 15
    assert len(EXAMPLES) == sum(map(len, map(those, (SERVED, NOT_SERVED, REFUSED))))


@pytest.mark.parametrize(("example", "kind", "backend", "how"), those(SERVED))
def test_it_is_served(example, kind, backend, how, tmp_path, monkeypatch):
    monkeypatch.setattr(choose, "instruction_set", lambda backend: kind)
    bundle = written(tmp_path / "b", example)
    chosen = open_best(bundle, read_manifest(bundle / MANIFEST).artifacts, num_threads=1)
    chosen.runner.close()
    assert (chosen.runner.backend, chosen.how) == (backend, how)


@pytest.mark.parametrize(("example", "kind", "reason"), those(NOT_SERVED))
def test_it_is_not_served(example, kind, reason, tmp_path, monkeypatch):
    monkeypatch.setattr(choose, "instruction_set", lambda backend: kind)
    bundle = written(tmp_path / "b", example)
    with pytest.raises(BundleError) as caught:
        open_best(bundle, read_manifest(bundle / MANIFEST).artifacts)
    assert reason in str(caught.value)


@pytest.mark.parametrize(("example", "place"), those(REFUSED))
def test_it_is_refused(example, place, tmp_path):
    with pytest.raises(BundleError) as caught:
        read_manifest(written(tmp_path / "b", example) / MANIFEST)
    assert place in str(caught.value)
    assert "evidence" in str(caught.value)
