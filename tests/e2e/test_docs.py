"""Every command in README and docs runs as it stands, or says beside it why it does not."""

import os
import re
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from project import ROOT

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<why>[^>]+) -->\n)?```(?P<kind>bash|python)\n(?P<text>.*?)```", re.DOTALL
)
# CI itself calls these targets; running `make test` in a test would never end.
CALLED_BY_CI = {"make demo", "make test"}
LOCKED = {"serve": ["", "cpu"], "serve-openvino": ["", "cpu", "openvino"]}
LOCKED["gpu"] = ["", "train", "convert", "gpu"]
LOCKED["dev"] = [
    "",
    "train",
    "tensorboard",
    "convert",
    "batch",
    "cpu",
    "openvino",
    "rtx",
    "otel",
    "docs",
    "dev",
]


def script(document: Path) -> str:
    """The document's commands, in order, as one shell script."""
    parts = []
    for block in BLOCK.finditer(document.read_text()):
        if block["why"]:
            continue
        if block["kind"] == "python":
            parts.append(f"python - <<'END'\n{block['text']}END\n")
        else:
            lines = [line for line in block["text"].splitlines() if line not in CALLED_BY_CI]
            parts.append("\n".join(lines) + "\n")
    return "".join(parts)


@pytest.mark.alone  # servers on their usual ports
@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_of_a_document_run(document, environment, tmp_path):
    commands = script(document)
    if not commands.strip():
        assert document.name != "README.md"
        return
    log = tmp_path / "log"
    with log.open("w") as output:
        # A process group of its own, so that servers left in the background end with it.
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=tmp_path,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(timeout=480)
        except subprocess.TimeoutExpired:
            output.write("still running after 480 s\n")
        finally:
            with suppress(ProcessLookupError):  # nothing was left in the background
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=60)
    assert process.returncode == 0, log.read_text()


def test_ci_calls_the_targets_that_the_readme_names():
    ci = (ROOT / ".ci" / "run").read_text()
    assert all(target in ci for target in CALLED_BY_CI)


def headings(document: Path) -> set[str]:
    """The names by which links reach a document's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_between_documents_lead_somewhere():
    """`make docs` checks those of docs/, but neither the README's nor what only GitHub shows."""
    for document in DOCUMENTS:
        links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", document.read_text())
        for target, heading in links:
            if target.startswith(("generated/", "../generated/")):  # made by `make docs`
                continue
            there = document.parent / target if target else document
            assert there.exists(), f"{document.name}: {target}"
            assert not heading or heading in headings(there), f"{document.name}: {target}#{heading}"


def test_the_page_of_environment_variables_has_all_that_the_sources_name():
    page = (ROOT / "docs" / "environment.md").read_text()
    names = r'environ(?:\.get|\.setdefault)?[(\[]"(\w+)"|envvar="(\w+)"|"([A-Z_]+)" in os\.environ'
    for folder in ("irv2", "train", "convert", "serve"):
        for path in (ROOT / folder).rglob("*.py"):
            for groups in re.findall(names, path.read_text()):
                assert f"`{''.join(groups)}`" in page, f"{path}: {groups}"


def test_the_lines_of_the_files_to_read_first_are_about_right():
    """`python docs/reading.py` fills them in; a tenth off is not worth a commit."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `([\w/]+\.py)` \| (\d+) \|", page, re.MULTILINE)
    assert len(rows) == 10
    for file, stated in rows:
        lines = len((ROOT / file).read_text().splitlines())
        assert abs(lines - int(stated)) <= lines / 10, f"{file}: {lines} lines"


def test_the_table_of_extras_names_those_that_there_are():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (ROOT / "docs" / "installing.md").read_text()
    table = re.search(r"\| extra \|.*?\n\n", page, re.DOTALL).group()
    named = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert named == set(project["optional-dependencies"])


def test_dependencies_each_have_a_line_of_reason():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    required = [*project["dependencies"], *(name for extra in extras.values() for name in extra)]
    text = (ROOT / "docs" / "dependencies.md").read_text()
    columns = re.findall(r"^\| ([^|]+) \|", text, re.MULTILINE)
    reasoned = {name for column in columns for name in column.split(", ")}
    for requirement in required:
        name = re.match(r"[\w-]+", requirement).group()
        assert name in reasoned or name == "irv2" or name.startswith("types-"), name


@pytest.mark.parametrize("lock", LOCKED)
def test_the_lock_has_every_requirement_in_its_range_and_names_no_index(lock):
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {"": project["dependencies"], **project["optional-dependencies"]}
    text = (ROOT / "requirements" / f"{lock}.lock").read_text()
    assert not re.search(r"^-|://", text, re.MULTILINE)
    pinned = re.findall(r"^([\w-]+)==(\S+)", text, re.MULTILINE)
    for line in (line for extra in LOCKED[lock] for line in extras[extra]):
        required = Requirement(line)
        found = [version for name, version in pinned if name == required.name]
        assert found or required.name == "irv2" or (lock, required.name) == ("dev", "torch"), line
        assert all(version in required.specifier for version in found), f"make lock: {line}"
