"""A list goes wherever a folder does: trained on, measured, exported, verified, classified."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image
from small_run import SMALL

from irv2.cli.main import main
from irv2.convert.gate.reference import Reference
from irv2.convert.gate.remarks import leakage_remark
from irv2.convert.onnx.calibrate import CalibrationOptions, choose_images
from irv2.data.dataset import open_split


def run(*arguments: object) -> dict:
    done = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures/, its list, a network trained on the list, and its bundle."""
    site = tmp_path_factory.mktemp("site")
    (site / "pictures").mkdir()
    rows = ["path,label"]
    for i in range(40):
        colour = (200 - i, i, 0) if i % 2 else (0, i, 200 - i)
        Image.new("RGB", (90, 80), colour).save(site / f"pictures/{i}.png")
        rows.append(f"pictures/{i}.png,{'red one' if i % 2 else 'blue'}")
    path = site / "list.csv"
    path.write_text("\n".join(rows))
    run("train", *SMALL, "--data", path, "--epochs", 1, "--workers", 0, "--out", site / "run")
    run("export", site / "run/best.pt", "--data", path, "--out", site / "bundle", "--accept-chance")
    return site


def test_every_program_counts_the_images_of_the_list(site):
    path, best, bundle = site / "list.csv", site / "run/best.pt", site / "bundle"
    assert run("eval", best, "--data", path)["n"] == 6
    assert run("eval", bundle, "--data", path)["n"] == 6
    assert run("verify", bundle, "--data", path)["artifacts"][0]["parity"]["n"] == 6
    assert run("diff", best, bundle, "--data", path)["n"] == 6
    assert len(run("classify", path, "--bundle", bundle)["results"]) == 40
    assert run("features", path, "--model", best, "-o", site / "features.npz")["n"] == 40


def test_a_finished_run_knows_its_list_again(site):
    options = (*SMALL, "--data", site / "list.csv", "--epochs", 1, "--out", site / "run")
    assert run("train", *options, "--resume")["epoch"] == 1
    assert json.loads((site / "run/config.json").read_text())["data_path"].endswith("/list.csv")


def test_calibration_and_the_search_for_training_images_use_the_rows_of_train(site):
    path = site / "list.csv"
    val = open_split(path, "val")
    drawn = choose_images(val, CalibrationOptions(num_images=10))
    assert drawn.list_path == path
    assert not set(drawn.files) & set(val.files)
    reference = Reference.load(site / "bundle/reference.npz")
    assert leakage_remark(reference, path) == ""
    (site / "pictures/copy.png").write_bytes(val.read(0))
    rows = [f"{file},x,train" for file in (*open_split(path, "train").files, "pictures/copy.png")]
    leaky = site / "leaky.csv"
    leaky.write_text("\n".join(["path,label,split", *rows, f"{val.files[0]},x,val"]))
    assert leakage_remark(reference, leaky).startswith("1 of 6 evaluation images are in train/")
