"""What a file of published weights becomes: published weights and a state_dict, or one line."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from irv2.convert.importing.recognise import read_weights
from irv2.convert.importing.weights import PublishedWeights, state_dict_of
from irv2.errors import CheckpointError

State = dict[str, torch.Tensor]


def imported(path: Path) -> tuple[PublishedWeights, State]:
    weights = read_weights(path)
    return weights, state_dict_of(weights, path)


def refused(read: Callable[[], object]) -> str:
    """The line with which `read` refuses a file."""
    with pytest.raises(CheckpointError) as caught:
        read()
    line = str(caught.value)
    assert "\n" not in line
    return line
