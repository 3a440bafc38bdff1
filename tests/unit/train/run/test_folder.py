"""A run's folder: whose it is, who may write in it, and what must not stop a training."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from process_output import read_line

from irv2.checkpoint import Checkpoint
from irv2.errors import CheckpointError, DataError, UsageError
from irv2.model import inception_resnet_v2
from irv2.train.run.folder import Run
from irv2.train.settings import SETTINGS

DATA = {"num_train": 4, "files_sha256": "f", "labels_sha256": "a"}


def run_in(path: Path, data: dict[str, object] = DATA, **recipe: object) -> Run:
    return Run(path, {"recipe": {**SETTINGS["2"].to_json(), **recipe}, "data": data})


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A folder in which a run has begun, with a checkpoint of its step 10."""
    run = run_in(tmp_path / "run")
    with run.locked():
        run.start()
    checkpoint(run).save(run.last)
    return run.path


def checkpoint(run: Run, step: int = 10, **other: object) -> Checkpoint:
    model = inception_resnet_v2(2, (1, 1, 1), 0.1)
    fields: dict[str, object] = {
        "model": model.config,
        "state_dict": model.state_dict(),
        "classes": ["cat", "dog"],
        "preprocess": SETTINGS["2"].preprocess,
        "setting": "2",
        "epoch": 1,
        "step": step,
        "recipe": run.config["recipe"],
        "training": {"epoch": 1},
    }
    return Checkpoint(**{**fields, **other})


def begin_older_run(path: Path, **recipe: object) -> None:
    """As written before dropout was an option and labels were looked at."""
    path.mkdir()
    fields = {**SETTINGS["2"].to_json(), **recipe}
    del fields["dropout"]
    data = {key: value for key, value in DATA.items() if key != "labels_sha256"}
    (path / "config.json").write_text(json.dumps({"recipe": fields, "data": data}))
    (path / "last.pt").touch()


def test_the_same_run_may_go_on_whatever_the_machine(begun):
    run_in(begun).check(must_exist=False)
    Run(begun, {**run_in(begun).config, "machine": {"workers": 3}}).check(must_exist=False)


def test_a_start_that_failed_before_its_first_save_binds_nobody(tmp_path):
    first, second = run_in(tmp_path / "run"), run_in(tmp_path / "run", width=0.2)
    for run in (first, second):
        run.check(must_exist=False)
        with run.locked():
            assert run.start() is None
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == second.config


def test_epochs_after_an_older_checkpoint_are_trained_again(begun, caplog):
    run = run_in(begun)
    for epoch in (1, 2, 3):
        run.finish_epoch(row(epoch), {}, True)
    assert run.start().step == 10
    assert run.metrics() == [row(1), row(2)]  # the third ended at step 12
    assert "epochs after step 10 are trained again" in caplog.text


def test_finished_epochs_without_a_checkpoint_do_not_begin_anew(begun):
    run = run_in(begun)
    run.finish_epoch(row(1), {}, True)
    run.last.unlink()
    with pytest.raises(UsageError, match=r"1 finished epochs, but no last\.pt.* --init-from "):
        run.start()


@pytest.mark.parametrize(
    "other", [{"training": {}}, {"recipe": SETTINGS["1"].to_json()}], ids=["best.pt", "another run"]
)
def test_a_checkpoint_that_this_run_did_not_write_is_refused(begun, other):
    run = run_in(begun)
    checkpoint(run, **other).save(run.last)
    with pytest.raises(CheckpointError, match=r"something else; .* --out NEW --init-from"):
        run.start()


def test_the_way_out_of_a_damaged_checkpoint_is_a_new_run(begun):
    run = run_in(begun)
    run.last.write_bytes(run.last.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"--out NEW --init-from .*best\.pt"):
        run.start()


def test_a_run_of_an_older_version_may_go_on(tmp_path):
    begin_older_run(tmp_path / "run")
    run_in(tmp_path / "run").check(must_exist=False)


def test_a_run_of_an_older_version_had_the_default_of_what_was_no_option_yet(tmp_path):
    begin_older_run(tmp_path / "run")
    with pytest.raises(UsageError, match=r"another recipe: dropout 0\.2 there and 0\.5"):
        run_in(tmp_path / "run", dropout=0.5).check(must_exist=False)


@pytest.mark.parametrize(
    ("key", "meaning"),
    [
        ("files_sha256", "the names of files"),
        ("labels_sha256", "classes, labels or places in shards"),
    ],
)
def test_other_images_are_refused(begun, key, meaning):
    with pytest.raises(UsageError, match=rf"other images: {key} \({meaning}\); .*same images"):
        run_in(begun, {**DATA, key: "other"}).check(must_exist=False)


def test_another_checkpoint_to_begin_with_is_named_without_its_hash(begun):
    with pytest.raises(UsageError, match=r"recipe: init_sha256 \(the checkpoint of --init-from\);"):
        run_in(begun, init_sha256="e3b0c442").check(must_exist=False)


def test_a_longer_run_of_the_same_recipe_goes_on_and_is_recorded(begun):
    longer = run_in(begun, epochs=91)
    longer.check(must_exist=True)
    assert longer.start().step == 10
    found = json.loads((begun / "config.json").read_text())
    assert found == longer.config
    with pytest.raises(UsageError, match=r"epochs 91 there and 90 here; .* the same options"):
        run_in(begun).check(must_exist=False)


@pytest.mark.parametrize("changed", ["cosine_steps", "decay_steps"])
def test_a_longer_run_whose_learning_rate_depends_on_its_length_is_told_how(begun, changed):
    longer = run_in(begun, **{"epochs": 91, changed: 77})
    expected = rf"epochs 90 there and 91 here.*begin another.*--init-from {begun}/best\.pt --out"
    with pytest.raises(UsageError, match=expected):
        longer.check(must_exist=False)
    with pytest.raises(UsageError, match="the same options"):
        run_in(begun, **{"epochs": 91, changed: 77, "momentum": 0.1}).check(must_exist=False)


def test_of_a_run_that_began_with_files_now_left_out_the_way_out_is_to_replace_them(begun):
    skipping = run_in(begun, {**DATA, "num_train": 3, "num_val": 2})
    skipping.config["machine"] = {"bad_images": "skip"}
    with pytest.raises(UsageError, match=r"num_train 4 there and 3 here; .* replace the files"):
        skipping.check(must_exist=False)


def test_a_config_that_is_none_is_one_line(begun):
    (begun / "config.json").write_text("{}")
    with pytest.raises(DataError, match="the configuration of a run"):
        run_in(begun).check(must_exist=False)


def test_a_folder_with_other_files_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match="holds other files"):
        run_in(tmp_path).check(must_exist=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_a_first_start_that_was_killed_leaves_behind_is_swept_away(tmp_path):
    left_over = tmp_path / ".config.json.123.tmp"
    left_over.touch()
    (tmp_path / ".lock").touch()
    run = run_in(tmp_path)
    run.check(must_exist=False)
    with run.locked():
        assert run.start() is None
    assert not left_over.exists()


def test_temporaries_of_other_programs_beside_a_run_are_left_alone(begun):
    bundle, file = begun / ".best.bundle.x1y2.tmp", begun / ".model.onnx.123.tmp"
    bundle.mkdir()
    file.touch()
    run = run_in(begun)
    run.check(must_exist=True)
    with run.locked():
        assert run.start().step == 10
    assert bundle.is_dir()
    assert file.is_file()


def test_of_two_first_starts_one_is_refused(tmp_path):
    program = (
        "import sys; from pathlib import Path; from irv2.train.run.folder import Run\n"
        "with Run(Path(sys.argv[1]), {}).locked(): print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert read_line(other.stdout) == "locked\n"
        with pytest.raises(UsageError, match="another irv2-train"), run_in(tmp_path).locked():
            pass
        other.communicate("")
    with run_in(tmp_path).locked():
        pass


def row(epoch: int) -> dict[str, float]:
    return {
        "epoch": epoch,
        "step": 4 * epoch,
        "train_top1_error": 1.0,
        "train_top5_error": 0.0,
        "val_top1_error": 1.0,
        "val_top5_error": 0.0,
    }


def finish(run: Run, epoch: int, top1_error: float, is_saved: bool = True) -> Checkpoint:
    errors = {"val_top1_error": top1_error, "ema_val_top1_error": top1_error}
    made = checkpoint(run, step=4 * epoch, training={})
    run.finish_epoch({**row(epoch), **errors}, {"": made, "ema_": made}, is_saved)
    return made


def resumed(path: Path) -> Run:
    run = run_in(path)
    checkpoint(run, step=100).save(run.last)
    with run.locked():
        run.start()
    return run


def test_the_best_of_a_run_that_was_stopped_stays_the_best(begun, caplog):
    finish(run_in(begun), 1, 5.0)
    run = resumed(begun)
    finish(run, 2, 5.0)
    assert {kind: best["epoch"] for kind, best in run.best_rows().items()} == {"": 1, "ema_": 1}
    finish(run, 3, 4.0)
    assert run.best_rows()[""]["epoch"] == 3
    assert "is gone" not in caplog.text


def test_the_best_of_epochs_that_were_not_saved_is_written_with_the_next_save(begun):
    run = run_in(begun)
    finish(run, 1, 5.0)
    made = finish(run, 2, 4.0, is_saved=False)
    weight = next(iter(made.state_dict.values()))
    before = weight.clone()
    weight += 1  # training goes on in the same memory
    finish(run, 3, 6.0, is_saved=False)
    assert run.best_rows()[""]["epoch"] == 1
    run.write_best()
    assert {kind: best["epoch"] for kind, best in run.best_rows().items()} == {"": 2, "ema_": 2}
    written = next(iter(Checkpoint.load(run.best).state_dict.values()))
    assert torch.equal(written, before)


@pytest.mark.parametrize("name", ["best.pt", "best-ema.pt"])
def test_best_weights_moved_away_are_named_and_those_of_later_epochs_kept(begun, name, caplog):
    finish(run_in(begun), 1, 5.0)
    (begun / name).unlink()
    run = resumed(begun)
    assert f"{begun / name} is gone" in caplog.text
    for epoch, error in ((2, 8.0), (3, 9.0), (4, 7.0)):
        finish(run, epoch, error)
    kept = {"best.pt": "", "best-ema.pt": "ema_"}
    assert {name: run.best_rows()[kind]["epoch"] for name, kind in kept.items()} == {
        "best.pt": 1,
        "best-ema.pt": 1,
        name: 4,
    }


def test_another_checkpoint_in_the_place_of_the_best_is_one_line(begun):
    run = run_in(begun)
    checkpoint(run).save(run.best)
    with pytest.raises(CheckpointError, match=r"best\.pt: without this run's errors; .*move it"):
        run.best_rows()


def test_mlflow_that_can_not_be_reached_or_is_missing_is_said_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "bad://away")
    run = run_in(tmp_path)
    for epoch in (1, 2, 3):
        run.finish_epoch(row(epoch), {}, True)
    assert len(run.metrics()) == 3
    assert caplog.text.count("MLflow: can't be written (") == 1
    if find_spec("mlflow") is None:
        assert "MLFLOW_TRACKING_URI: is set, but the package mlflow is not installed" in caplog.text


def test_curves_that_can_not_be_drawn_are_named_and_drawn_after_the_next_epoch(tmp_path, caplog):
    run = run_in(tmp_path)
    obstacle = tmp_path / "curves.png"
    obstacle.mkdir()
    run.finish_epoch(row(1), {}, True)
    assert "curves.png: can't be written" in caplog.text
    assert len(run.metrics()) == 1
    obstacle.rmdir()
    run.finish_epoch(row(2), {}, True)
    assert obstacle.read_bytes().startswith(b"\x89PNG")
