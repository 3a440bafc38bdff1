"""`irv2 eval --server` says what `irv2 eval` says of the bundle that the server runs."""

import json
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from serving_process import serving
from tiny_bundle import CLASSES, SIDE, write_tiny_bundle

from irv2.cli.main import main


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A bundle, a server of it, and 40 pictures in all of its classes but one."""
    root = tmp_path_factory.mktemp("site")
    rng = np.random.default_rng(0)
    for i in range(40):
        folder = root / "data" / "val" / CLASSES[i % (len(CLASSES) - 1)]
        folder.mkdir(parents=True, exist_ok=True)
        colours = rng.integers(0, 40, (3, 3, 3), np.uint8)  # dark: no class is certain
        pixels = colours.repeat(SIDE // 3, 0).repeat(SIDE // 3, 1)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    bundle = write_tiny_bundle(root / "bundle")
    with serving(bundle) as server:
        yield bundle, server.address, root / "data"


def evaluate(*arguments):
    return CliRunner().invoke(main, ["eval", *map(str, arguments)])


def test_a_server_gets_the_numbers_of_its_bundle(site, tmp_path):
    bundle, address, data = site
    here, there = (
        json.loads(evaluate(*model, "--data", data, "--worst", "5", "--json").stdout)
        for model in ([bundle], ["--server", address])
    )
    assert there.pop("backend") == f"{here.pop('backend')} at {address}"
    for found in (here, there):
        assert found["n"] == 40
        assert found["classes"][-1]["recall"] is None
    same = {"top1_error", "top5_error", "data_sha256", "confusion_matrix", "classes"}
    assert {key: there[key] for key in same} == {key: here[key] for key in same}
    # Probabilities travel as float32.
    assert there["calibration"]["ece"] == pytest.approx(here["calibration"]["ece"], abs=1e-3)
    assert [w["file"] for w in there["worst"]] == [w["file"] for w in here["worst"]]


def test_a_server_is_asked_about_any_split(site, tmp_path):
    _, address, data = site
    (tmp_path / "test").symlink_to(data / "val")
    found = evaluate("--server", address, "--data", tmp_path, "--split", "test", "--json")
    assert (json.loads(found.stdout)["n"], json.loads(found.stdout)["split"]) == (40, "test")


def test_a_servers_answers_are_compared_with_its_bundles(site, tmp_path):
    bundle, address, data = site
    ledgers = [str(tmp_path / name) for name in ("here.npz", "there.npz")]
    for model, ledger in zip(([bundle], ["--server", address]), ledgers, strict=True):
        result = evaluate(*model, "--data", data, "--ledger", ledger)
        assert result.exit_code == 0, result.stderr
    found = CliRunner().invoke(main, ["diff", *ledgers, "--json"])
    assert json.loads(found.stdout)["num_different"] == 0


def test_an_image_that_the_server_refuses_ends_the_work_or_is_left_out(site, tmp_path):
    _, address, data = site
    folder = tmp_path / "val" / CLASSES[0]
    folder.mkdir(parents=True)
    good = next((data / "val" / CLASSES[0]).iterdir()).read_bytes()
    (folder / "good.png").write_bytes(good)
    (folder / "half.png").write_bytes(good[: len(good) // 2])
    asked = ["--server", address, "--data", tmp_path]
    result = evaluate(*asked)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{folder / 'half.png'}: " in result.stderr
    result = evaluate(*asked, "--bad-images", "skip", "--json")
    assert json.loads(result.stdout)["n"] == 1


def test_what_the_server_decides_cannot_be_asked_for(site):
    _, address, data = site
    result = evaluate("--server", address, "--data", data, "--crops", "10", "--batch-size", "3")
    assert result.exit_code == 2
    expected = "error: irv2 eval: --crops and --batch-size given with --server; expected "
    assert result.stderr.startswith(expected)


def test_a_missing_matplotlib_is_told_before_the_work(site, tmp_path, monkeypatch):
    bundle, _, data = site
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "irv2.measures.picture", raising=False)
    asked = [bundle, "--data", data, "-o", tmp_path / "eval.png"]
    result = evaluate(*asked)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: irv2 eval: package matplotlib is not installed; pip ")
    assert evaluate(*asked, "--worst", "3").exit_code == 0  # a sheet of pictures needs none
    assert (tmp_path / "eval.png").stat().st_size > 0


def test_nobody_there_is_one_line(monkeypatch):
    monkeypatch.setattr("irv2.client.client.UNAVAILABLE_PAUSES_S", (0.1,))
    result = evaluate("--server", "127.0.0.1:1")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "127.0.0.1:1" in result.stderr.splitlines()[-1]
