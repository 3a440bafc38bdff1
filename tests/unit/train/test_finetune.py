"""The two phases of a fine-tuning side by side."""

from pathlib import Path

import pytest

from irv2.train.finetune import better, compare_phases


@pytest.mark.parametrize("error", [5.0, 4.0])
def test_only_a_head_that_did_better_than_the_network_after_it_is_named(caplog, error):
    head = {"best": "run/head/best.pt", "top1_error": 5.0}
    compare_phases(head, {"best": "run/best.pt", "top1_error": error})
    compare_phases(head, None)  # of another process than the first
    assert not caplog.text
    compare_phases(head, {"best": "run/best.pt", "top1_error": 5.5})
    assert (
        "the last layer alone did better: run/head/best.pt has a top-1 error of 5." in caplog.text
    )


AVERAGED = {"best": "best.pt", "top1_error": 5.0, "best_ema": "best-ema.pt"}


@pytest.mark.parametrize(
    ("error", "file"), [(4.0, "best-ema.pt"), (5.0, "best.pt"), (6.0, "best.pt")]
)
def test_the_better_of_weights_and_average_counts(caplog, error, file):
    head = {**AVERAGED, "ema_top1_error": error}
    assert better(head) == (Path(file), min(error, 5.0))
    compare_phases(head, {**AVERAGED, "ema_top1_error": min(error, 5.0)})
    assert not caplog.text
    compare_phases(head, {"best": "best.pt", "top1_error": 5.5})
    assert f"{file} has a top-1 error of {min(error, 5.0):.3f} %" in caplog.text
