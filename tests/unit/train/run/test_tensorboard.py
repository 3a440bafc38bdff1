"""Scalars for TensorBoard: there when it is installed, no trace of it when not."""

import subprocess
import sys

import pytest

from irv2.train.run.tensorboard import write_scalars

ROWS = [
    {"epoch": 1, "step": 10, "learning_rate": 0.045, "val_top1_error": 50.0},
    {"epoch": 2, "step": 20, "learning_rate": 0.043, "val_top1_error": 25.0},
]


def test_tensorboard_reads_every_epochs_numbers_under_their_names(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for row in ROWS:
        write_scalars(tmp_path, row)
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(ROWS[0])
    for name in ROWS[0]:
        # Files of one second are read by name, whose counter is no fixed number of digits.
        found = sorted((event.step, event.value) for event in events.Scalars(name))
        # Events hold float32.
        assert found == [(row["epoch"], pytest.approx(row[name], rel=1e-6)) for row in ROWS]


def test_without_the_package_nothing_is_imported_or_written(tmp_path):
    program = """
import importlib.machinery, sys
from pathlib import Path

class Missing:  # as on a machine without it
    @staticmethod
    def find_spec(name, path=None, target=None):
        assert name == "tensorboard", name
        return None

from irv2.train.run.tensorboard import write_scalars
sys.meta_path = [Missing]
write_scalars(Path(sys.argv[1]), {"epoch": 1})
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())
