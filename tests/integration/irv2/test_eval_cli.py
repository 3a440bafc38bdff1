"""`irv2 eval` on a real checkpoint and a real folder."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image
from tiny_checkpoint import CLASSES, make_checkpoint, write_images

from irv2.checkpoint import Checkpoint
from irv2.cli.main import main
from irv2.data.shard_writer import write_shards


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """CHECKPOINT --data DIR of a network that knows its 48 images."""
    root = tmp_path_factory.mktemp("eval")
    data = write_images(root / "data")
    make_checkpoint(data).save(root / "best.pt")
    return [str(root / "best.pt"), "--data", str(data), "--device", "cpu"]


def evaluate(arguments, *more):
    result = CliRunner().invoke(main, ["eval", *arguments, *more, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize("crops", ["1", "10", pytest.param("12", marks=pytest.mark.slow)])
def test_every_image_is_counted_once_with_any_number_of_crops(arguments, crops):
    found = evaluate(arguments, "--crops", crops)
    assert (found["n"], found["crops"]) == (48, int(crops))
    assert found["top1_error"] < 50  # of six classes; most colours are told apart
    assert [entry["label"] for entry in found["classes"]] == CLASSES
    assert sum(map(sum, found["confusion_matrix"])) == found["calibration"]["n"] == 48


@pytest.mark.parametrize("kind", ["folder", "list", "shards"])
def test_any_split_is_measured_and_a_missing_one_names_those_there_are(arguments, tmp_path, kind):
    """Of the 48 images, 8 become test; nothing else is in that split."""
    model, _, source, *rest = arguments
    data = tmp_path / "data"
    for i, file in enumerate(sorted((Path(source) / "val").rglob("*.png"))):
        to = data / ("val" if i % 6 else "test") / file.parent.name / file.name
        to.parent.mkdir(parents=True, exist_ok=True)
        to.symlink_to(file)
    if kind == "list":
        rows = [f"{f},{f.parent.name},{f.parents[1].name}" for f in data.rglob("*.png")]
        data = tmp_path / "list.csv"
        data.write_text("\n".join(["path,label,split", *rows]) + "\n")
    elif kind == "shards":
        write_shards(data, tmp_path / "shards", 1_000_000)
        data = tmp_path / "shards"
    data_options = [model, "--data", str(data), *rest]
    assert [evaluate(data_options, "--split", name)["n"] for name in ("val", "test")] == [40, 8]
    assert evaluate(data_options, "--split", "test")["split"] == "test"
    result = CliRunner().invoke(main, ["eval", *data_options, "--split", "train"])
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    got = "no rows of split train, but of " if kind == "list" else "no folder train/ in it, but "
    assert got in line
    assert "val" in line.partition(got)[2]
    assert "test" in line.partition(got)[2]


def test_144_crops_of_a_few_images_are_counted_exactly(arguments):
    found = evaluate(arguments, "--crops", "144", "--limit", "3")
    assert found["n"] == 3
    assert found["top1_error"] in {0.0, 100 / 3, 200 / 3, 100.0}


@pytest.mark.parametrize("more", [("--batch-size", "5"), ("--batch-size", "48", "--workers", "1")])
def test_errors_do_not_depend_on_batch_size_and_workers(arguments, more):
    one, other = evaluate(arguments), evaluate(arguments, *more)
    bins, others = one.pop("calibration"), other.pop("calibration")
    assert other == one
    assert others["ece"] == pytest.approx(bins["ece"], abs=1e-3)  # of probabilities in float32


def test_the_original_average_stands_beside_the_exact_errors(arguments):
    exact, both = evaluate(arguments), evaluate(arguments, "--legacy-average")
    assert {key: both[key] for key in exact} == exact
    # 48 images are one batch of the original's.
    assert both["legacy_top1_error"] == pytest.approx(exact["top1_error"])
    text = CliRunner().invoke(main, ["eval", *arguments, "--legacy-average"]).stdout
    assert text.splitlines()[1].startswith("the original's average: top-1 error ")


def test_the_line_of_errors_comes_first_and_the_classes_follow(arguments):
    lines = CliRunner().invoke(main, ["eval", *arguments]).stdout.splitlines()
    assert re.fullmatch(r"48 images: top-1 error .* %, top-5 error .* % \(torch-cpu\)", lines[0])
    for name in CLASSES:
        assert any(line.startswith(f"{name} ") for line in lines[1:])


def test_a_picture_is_drawn_of_the_whole_or_of_the_worst_images(arguments, tmp_path):
    whole, sheet = tmp_path / "eval.png", tmp_path / "worst.png"
    assert "worst" not in evaluate(arguments, "-o", str(whole))
    found = evaluate(arguments, "--worst", "3", "-o", str(sheet))["worst"]
    with Image.open(whole) as picture, Image.open(sheet) as pictures:
        assert picture.height > pictures.height > 160  # one row of three
    losses = [image["loss"] for image in found]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 3
    assert Path(found[0]["file"]).parent.name == found[0]["label"]


def test_a_picture_in_no_folder_is_refused_before_the_work(arguments, tmp_path):
    out = str(tmp_path / "no" / "eval.png")
    result = CliRunner().invoke(main, ["eval", *arguments, "-o", out])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {out}: no such folder; expected an existing one;")


@pytest.mark.parametrize("more", [["--server", "127.0.0.1:1"], []])
def test_one_thing_is_evaluated(arguments, more):
    model = arguments[:1] if more else []
    result = CliRunner().invoke(main, ["eval", *model, *arguments[1:], *more])
    assert result.exit_code == 2
    got = "both a model and --server given" if more else "neither a model nor --server given"
    assert result.stderr.startswith(f"error: irv2 eval: {got}; expected one of them; name a ")


def test_epochs_are_compared_by_their_ledgers_or_as_checkpoints(arguments, tmp_path):
    checkpoint_path, _, data, *_ = arguments
    other_path = tmp_path / "other.pt"
    checkpoint = Checkpoint.load(Path(checkpoint_path))
    weights = checkpoint.state_dict | {
        f"classifier.{name}": checkpoint.state_dict[f"classifier.{name}"].roll(1, dims=0)
        for name in ("weight", "bias")
    }
    replace(checkpoint, state_dict=weights).save(other_path)
    ledgers = [str(tmp_path / "a.npz"), str(tmp_path / "b.npz")]
    for path, ledger in zip([checkpoint_path, str(other_path)], ledgers, strict=True):
        found = evaluate([path, *arguments[1:]], "--ledger", ledger)
        assert found["n"] == 48
    by_ledger, by_checkpoint = (
        CliRunner().invoke(main, ["diff", *models, "--data", data, "--json"])
        for models in (ledgers, [checkpoint_path, str(other_path)])
    )
    assert by_ledger.exit_code == by_checkpoint.exit_code == 0, by_checkpoint.stderr
    of_ledgers, of_checkpoints = (json.loads(r.stdout) for r in (by_ledger, by_checkpoint))
    assert of_ledgers["num_different"] == of_checkpoints["num_different"] == 48
    assert {image["sha256"] for image in of_ledgers["images"]} == {
        image["sha256"] for image in of_checkpoints["images"]
    }
    assert of_checkpoints["images"][0]["label"] in CLASSES


def test_one_process_evaluates(arguments, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = CliRunner().invoke(main, ["eval", *arguments])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: irv2 eval: 2 processes; expected one; leave out torch")


def test_another_number_of_crops_is_wrong_usage(arguments):
    result = CliRunner().invoke(main, ["eval", *arguments, "--crops", "7"])
    assert result.exit_code == 2
    assert "--crops" in result.stderr
