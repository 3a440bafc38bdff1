"""The original's logs, read back."""

import math

import pytest
from torch7_logs import DONE, epoch

from irv2.errors import DataError
from irv2.train.curves.torch7_log import read_torch7_log


def test_a_torch7_log_has_a_row_per_finished_epoch(log):
    assert read_torch7_log(log) == [
        {"epoch": 1, "train_top1_error": 95, "train_top5_error": 47.5, "val_top1_error": 81,
         "val_top5_error": 40.5},
        {"epoch": 2, "train_top1_error": 70, "train_top5_error": 35, "val_top1_error": 60,
         "val_top5_error": 30},
    ]  # fmt: skip


def test_after_a_restart_an_epochs_later_lines_count(log):
    with log.open("a") as file:
        file.write(epoch(3, [50, 48], 55) + epoch(3, [40, 42], 45))
    assert [row["epoch"] for row in read_torch7_log(log)] == [1, 2, 3]
    assert read_torch7_log(log)[-1]["train_top1_error"] == 41
    assert read_torch7_log(log)[-1]["val_top1_error"] == 45


def test_a_log_without_steps_has_validation_errors_alone(tmp_path):
    (tmp_path / "val.log").write_text(DONE.format(7, 30, 10))
    [row] = read_torch7_log(tmp_path / "val.log")
    assert (row["epoch"], row["val_top1_error"]) == (7, 30)
    assert math.isnan(row["train_top1_error"])


def test_a_line_being_written_is_left_for_later(log):
    log.write_text(log.read_text() + " | Epoch: [3][2/2]    Time 0.9")
    assert len(read_torch7_log(log)) == 2


def test_a_damaged_line_is_named(log):
    log.write_text(log.read_text().replace("top1:  60.000", "top1:  6x.000"))
    with pytest.raises(
        DataError, match=r"setting1\.log: line 10 is damaged: '\* Finished epoch # 2"
    ):
        read_torch7_log(log)


RED, BLUE, FIRST, SECOND = (255, 0, 0), (0, 0, 255), (31, 119, 180), (255, 127, 14)
