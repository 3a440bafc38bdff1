"""What a file of published weights becomes: a source and a state, or one line."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from irv2.convert.importing.recognise import read_source
from irv2.convert.importing.source import Source, state_dict_of
from irv2.errors import CheckpointError

State = dict[str, torch.Tensor]


def imported(path: Path) -> tuple[Source, State]:
    source = read_source(path)
    return source, state_dict_of(source, path)


def refused(read: Callable[[], object]) -> str:
    """The line with which `read` refuses a file."""
    with pytest.raises(CheckpointError) as caught:
        read()
    line = str(caught.value)
    assert "\n" not in line
    return line
