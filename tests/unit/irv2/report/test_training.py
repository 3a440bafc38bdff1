"""A run's chapter."""

import shutil

from irv2.report.sources import read_sources
from irv2.report.training import best_row, headline, training_chapter


def chapter(run):
    [found] = read_sources([run]).runs
    return found, "\n".join(training_chapter(found, False, "run-1").itertext())


def test_the_epoch_with_the_lowest_error_is_named(run):
    found, text = chapter(run)
    assert "after epoch 2 of 3: top-1 33.00 %, top-5 1.00 % of 6 images" in headline(found)
    assert "irv2-train <u>" in text
    assert "training images\n60" in text
    assert "1 2 1" in text
    assert "not measured, no bundle here was made from this run" in text


def test_a_run_without_a_finished_epoch_or_a_configuration_says_so(run):
    (run / "metrics.jsonl").write_text("")
    assert "Training curves: not measured" in chapter(run)[1]
    (run / "config.json").unlink()
    assert "not recorded, the folder has no config.json" in chapter(run)[1]


def test_of_a_fine_tuning_the_second_phase_counts(run):
    (run / "head").mkdir()
    shutil.copy(run / "metrics.jsonl", run / "head" / "metrics.jsonl")
    found, text = chapter(run)
    assert best_row(found.curve)["epoch"] == 5
    assert "Up to the dotted line, after epoch 3, the last layer alone" in text
