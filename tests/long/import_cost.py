"""Time and memory of `irv2 import` for a full-size file of every kind.

    python tests/long/import_cost.py

Makes the files with random weights in the temporary folder (1.3 GB, removed afterwards), imports
each in a process of its own and prints one row per file. Exit status 1 where one took 10 s or more,
or 2.5 times its size or more above a process that only imported torch. About a minute on an idle
machine; on a busy one the times say nothing.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' own modules

from measured_import import run_import
from original_network import Tree
from slim_network import (
    SlimNetwork,
    keras_layers,
    write_keras_2,
    write_keras_3,
    write_keras_archive,
)
from torch7_writer import save

MAX_SECONDS, MAX_TIMES_ITS_SIZE = 10, 2.5


def write_files(folder: Path) -> list[Path]:
    """One full-size file of every kind."""
    network = SlimNetwork(last="classif", gamma=False)
    network.logits(torch.randn(1, 3, 299, 299))  # makes the tensors
    layers = keras_layers(network)
    save(folder / "original.t7", Tree().network)
    torch.save(network.tensors, folder / "zipped.pth")
    torch.save(network.tensors, folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file(network.tensors, folder / "timm.safetensors")
    write_keras_2(folder / "keras.h5", layers)
    write_keras_3(folder / "keras.weights.h5", layers, named=True)
    write_keras_archive(folder / "model.keras", layers)
    return sorted(folder.iterdir())


def main() -> None:
    rows, too_much = [], False
    with TemporaryDirectory() as name:
        for path in write_files(Path(name)):
            done = run_import(path, "-o", path.with_suffix(".pt"))
            path.with_suffix(".pt").unlink()
            times = done.peak_bytes / path.stat().st_size
            too_much |= done.seconds >= MAX_SECONDS or times >= MAX_TIMES_ITS_SIZE
            rows.append((path.name, path.stat().st_size / 1e6, done.seconds, times))
    headers = ("file", "MB", "seconds", "memory / size")
    print(tabulate(rows, headers, floatfmt=("", ".0f", ".1f", ".2f")))
    sys.exit(too_much)


if __name__ == "__main__":
    main()
