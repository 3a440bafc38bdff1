"""The two phases of a fine-tuning side by side."""

import pytest

from irv2.train.finetune import compare_phases


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
