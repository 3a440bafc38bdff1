"""A log of the original's."""

import pytest
from torch7_logs import STEP, epoch


@pytest.fixture
def log(tmp_path):
    """Two finished epochs and a third that has begun."""
    text = "=> Creating model from file: models/inception-resnet-v2.lua\n"
    text += epoch(1, [100, 90], 81) + epoch(2, [70.5, 69.5], 60) + STEP.format(3, 1, 60, 40)
    (tmp_path / "setting1.log").write_text(text)
    return tmp_path / "setting1.log"
