"""What a release asks of its tag, before anything is built."""

import pytest
import release
from project import ROOT

VERSION = '__version__ = "0.2.0"\n'
HEADING = "## [0.2.0] - 2026-12-01\n"


def write_source(folder, log: str):
    (folder / "irv2").mkdir()
    (folder / "irv2/__init__.py").write_text(f'"""A package."""\n\n{VERSION}')
    (folder / "CHANGELOG.md").write_text(f"# Changelog\n\n{log}")
    return folder


def test_the_tag_names_the_version_and_the_change_log_has_its_date(tmp_path):
    source = write_source(tmp_path, f"## [Unreleased]\n\n{HEADING}")
    assert release.check_source(source, "v0.2.0", is_dry_run=False) == "0.2.0"
    with pytest.raises(SystemExit, match=r"v0\.3\.0: irv2/__init__.py has 0\.2\.0; expected"):
        release.check_source(source, "v0.3.0", is_dry_run=False)


@pytest.mark.parametrize("log", ["## [Unreleased]\n", HEADING.replace(" - 2026-12-01", "")])
def test_a_tag_without_a_dated_heading_is_no_release(tmp_path, log):
    source = write_source(tmp_path, log)
    with pytest.raises(SystemExit, match=r"expected a heading ## \[0\.2\.0\] - YYYY-MM-DD"):
        release.check_source(source, "v0.2.0", is_dry_run=False)
    assert release.check_source(source, "HEAD", is_dry_run=True) == "0.2.0"


def test_the_change_log_has_its_parts():
    log = (ROOT / "CHANGELOG.md").read_text()
    parts = [line for line in log.splitlines() if line.startswith("#")]
    assert parts[:2] == ["# Changelog", "## [Unreleased]"]
    kinds = ("Changed defaults", "Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
    assert {part.removeprefix("### ") for part in parts if part.startswith("### ")} <= {*kinds}


def test_the_version_is_in_one_place():
    project = (ROOT / "pyproject.toml").read_text()
    assert 'dynamic = ["version"]' in project
    assert 'attr = "irv2.__version__"' in project
