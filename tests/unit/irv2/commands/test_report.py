"""`irv2 report`: what it refuses, and that it writes whole pages alone."""

import json

import pytest
from click.testing import CliRunner
from signing import key_pair
from tiny_bundle import write_tiny_bundle

from irv2.cli.main import main


@pytest.fixture
def bundle(tmp_path):
    return write_tiny_bundle(tmp_path / "b.bundle")


def invoke(*arguments):
    return irv2("report", *arguments)


def irv2(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_it_prints_where_the_page_is(bundle, tmp_path):
    out = tmp_path / "report.html"
    done = invoke(bundle, "-o", out)
    assert (done.exit_code, done.stdout) == (0, f"{out}\n")
    assert out.read_bytes().startswith(b"<!doctype html>")
    found = json.loads(invoke(bundle, "-o", out, "--json").stdout)
    assert (found["out"], found["runs"], found["bundles"]) == (str(out), [], ["b.bundle"])
    assert found["lacking"]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("best.pt", r"a name that ends in .html or .htm"),
        ("none/report.html", "no such folder"),
    ],
)
def test_a_place_that_can_not_be_written_is_refused(bundle, tmp_path, name, line):
    done = invoke(bundle, "-o", tmp_path / name)
    assert done.exit_code == 2
    assert line in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_older_page_stays_where_a_new_one_fails(bundle, tmp_path):
    out = tmp_path / "report.html"
    out.write_text("old")
    (bundle / "model.onnx").write_bytes(b"another model")
    done = invoke(bundle, "-o", out)
    assert done.exit_code == 2
    assert "model.onnx" in done.stderr
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.bundle", "report.html"]


def test_a_folder_that_is_neither_run_nor_bundle_is_one_line(tmp_path):
    done = invoke(tmp_path, "-o", tmp_path / "report.html")
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {tmp_path}: neither a run nor a bundle")
    assert done.stderr.count("\n") == 1


def test_a_signer_is_named_and_another_one_refused(bundle, tmp_path):
    out, ours, theirs = tmp_path / "r.html", key_pair(tmp_path), key_pair(tmp_path, "theirs")
    required = invoke(bundle, "-o", out, "--require-signature", ours.public)
    assert required.exit_code == 2
    assert "is not signed" in required.stderr
    assert irv2("sign", bundle, "--key", ours.private).exit_code == 0
    assert invoke(bundle, "-o", out, "--require-signature", theirs.public).exit_code == 2
    assert not out.exists()
    assert invoke(bundle, "-o", out, "--require-signature", ours.public).exit_code == 0
    assert ", holds</td>" in out.read_text()
