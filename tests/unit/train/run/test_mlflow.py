"""Scalars and recipe for MLflow: only where its user says, and nothing to anybody else."""

import os
import subprocess
import sys

import pytest

from irv2.train.run.mlflow import log_epochs

RECIPE = {"learning_rate": 0.045, "init_sha256": None, "mean": [0.5, 0.5, 0.5]}
ROWS = [
    {"epoch": 1, "step": 10, "learning_rate": 0.045, "val_top1_error": 50.0},
    {"epoch": 2, "step": 20, "learning_rate": 0.043, "val_top1_error": 25.0},
    {"epoch": 3, "step": 30, "learning_rate": 0.041, "val_top1_error": 12.5},
]


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A client of MLflow's store in files, and the folder of a run."""
    for name, value in {
        "MLFLOW_TRACKING_URI": f"file://{tmp_path / 'store'}",
        "MLFLOW_ALLOW_FILE_STORE": "true",  # MLflow prefers a database, which needs more packages
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_EXPERIMENT_NAME": "digits",
    }.items():
        monkeypatch.setenv(name, value)
    mlflow = pytest.importorskip("mlflow")
    folder = tmp_path / "my-run"
    folder.mkdir()
    return mlflow.MlflowClient(), folder


def the_run(client):
    [run] = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    return run


def test_every_epochs_numbers_and_the_recipe_are_in_one_run(store):
    client, folder = store
    for num in (1, 2):
        log_epochs(folder, RECIPE, ROWS[:num])
    run = the_run(client)
    assert run.info.run_name == "my-run"
    assert run.data.params == {key: str(value) for key, value in RECIPE.items()}
    assert set(run.data.metrics) == set(ROWS[0])
    for name in ROWS[0]:
        history = client.get_metric_history(run.info.run_id, name)
        assert [(m.step, m.value) for m in history] == [(r["epoch"], r[name]) for r in ROWS[:2]]


def test_a_resumed_training_goes_on_and_makes_good_what_failed(store, monkeypatch):
    client, folder = store
    log_epochs(folder, RECIPE, ROWS[:1])
    with monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", "bad://away")
        with pytest.raises(Exception, match="bad"):
            log_epochs(folder, RECIPE, ROWS[:2])
    log_epochs(folder, RECIPE, ROWS)
    log_epochs(folder, RECIPE, ROWS)  # an epoch that is evaluated again is there once
    history = client.get_metric_history(the_run(client).info.run_id, "step")
    assert [m.value for m in history] == [10, 20, 30]


def test_its_makers_are_told_nothing(store):
    _, folder = store
    program = """
import sys
from pathlib import Path
from irv2.train.run.mlflow import log_epochs
log_epochs(Path(sys.argv[1]), {}, [{"epoch": 1}])
from mlflow.telemetry.utils import is_telemetry_disabled
assert is_telemetry_disabled()
"""
    hushed = ("PYTEST_", "CI", "MLFLOW_DISABLE_TELEMETRY")  # any of these alone silences it
    environment = {key: value for key, value in os.environ.items() if not key.startswith(hushed)}
    command = [sys.executable, "-c", program, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_a_place_nothing_is_imported_or_written(tmp_path):
    program = """
import os, sys
from pathlib import Path
os.environ.pop("MLFLOW_TRACKING_URI", None)
from irv2.train.run.mlflow import log_epochs
log_epochs(Path(sys.argv[1]), {}, [{"epoch": 1}])
assert "mlflow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())
