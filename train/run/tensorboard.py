"""An epoch's numbers as TensorBoard scalars, if TensorBoard is installed."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

FOLDER = "tensorboard"


def write_scalars(run_path: Path, row: Mapping[str, float]) -> None:
    """Add a row of metrics.jsonl, under its own names, to the events in `run_path`/tensorboard.

    Each call writes a separate file, which TensorBoard joins into one series. A no-op without the
    package tensorboard.
    """
    if find_spec("tensorboard") is None:
        return
    from torch.utils.tensorboard.writer import SummaryWriter

    epoch = int(row["epoch"])
    with SummaryWriter(run_path / FOLDER) as writer:
        for name, value in row.items():
            writer.add_scalar(name, value, epoch)
