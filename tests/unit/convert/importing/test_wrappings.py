"""What training programs put around weights is taken off; what would be a guess is refused."""

from pathlib import Path

import pytest
import torch
from imported import refused

from irv2.convert.importing.wrappings import choose, head_of, named_tensors, unwrapped

PATH = Path("a.pth")
RAW, EMA = {"first": torch.ones(1)}, {"first": torch.zeros(1)}


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_the_weights_of_a_training_state_are_found(key):
    assert choose({key: RAW, "epoch": 3, "optimizer": {}}, "raw", PATH) == (RAW, ())
    assert choose(RAW, "raw", PATH) == (RAW, ())


@pytest.mark.parametrize(("raw", "ema"), [("state_dict", "state_dict_ema"), ("model", "model_ema")])
def test_weights_or_their_average_are_taken_as_asked(raw, ema):
    state = {raw: RAW, ema: EMA}
    note = f"its running average, {ema}, was not used (--weights ema)"
    assert choose(state, "raw", PATH) == (RAW, (note,))
    assert choose(state, "ema", PATH) == (EMA, ())


def test_the_other_of_the_two_is_never_taken_instead():
    line = refused(lambda: choose({"state_dict": RAW}, "ema", PATH))
    assert line.startswith("a.pth: has no running average of its weights; ")
    line = refused(lambda: choose({"model_ema": EMA}, "raw", PATH))
    assert line.endswith("pass --weights ema")


def test_weights_under_another_key_are_named():
    line = refused(lambda: named_tensors({"step": 3, "net": RAW}, PATH))
    assert line.endswith("step is no tensor; expected a state_dict: tensors by name; "
                         "save one of net by itself")  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod.net."])
def test_any_prefix_is_taken_off(prefix):
    tensors = {f"{prefix}first": 1, f"{prefix}second": 2, "head": 3}
    assert unwrapped(tensors, "first", PATH) == {"first": 1, "second": 2, "head": 3}


def test_another_networks_names_are_not_taken_for_the_first():
    assert unwrapped({"headfirst": 1, "second": 2}, "first", PATH) is None


def test_two_networks_in_one_are_refused():
    two = {"student.first": 1, "teacher.first": 2}
    assert "under student., teacher.;" in refused(lambda: unwrapped(two, "first", PATH))
    same = {"model.first": 1, "model.x": 2, "x": 3}
    assert "several networks" in refused(lambda: unwrapped(same, "first", PATH))


def test_the_head_is_the_only_linear_layer_on_the_features():
    tensors = {"conv.weight": torch.ones(2, 4, 1, 1), "fc.1.weight": torch.ones(3, 4)}
    assert head_of(tensors, 4) == "fc.1"
    assert head_of(tensors, 5) is None
    assert head_of(tensors | {"b.weight": torch.ones(2, 4)}, 4) is None
