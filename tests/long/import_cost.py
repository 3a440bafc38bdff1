"""Time and memory of `irv2 import` for a full-size file of every kind.

    python tests/long/import_cost.py

Makes the files with random weights in the temporary folder (1.6 GB, removed afterwards), imports
each in a process of its own and prints a Markdown table, for docs/importing.md. Exit status 1 where
one took 10 s or more, or 2.5 times its size or more above a process that only imported torch. About
a minute on an idle machine; on a busy one the times say nothing.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))  # the tests' own modules

from keras_models import published
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
    tensors, layers = network.tensors, keras_layers(network)
    of_cadene = {name.replace("classif.", "last_linear."): t for name, t in tensors.items()}
    save(folder / "original.t7", Tree().network)
    torch.save(of_cadene, folder / "old-format.pth", _use_new_zipfile_serialization=False)
    torch.save(tensors, folder / "zip-format.pth")
    save_file(tensors, folder / "model.safetensors")
    write_keras_2(folder / "keras-2.h5", layers)
    write_keras_3(folder / "keras-3.weights.h5", layers, named=True)
    write_keras_archive(folder / "model.keras", layers, published())
    return sorted(folder.iterdir())


def main() -> None:
    rows, too_much = [], False
    with TemporaryDirectory() as name:
        for path in write_files(Path(name)):
            done = run_import(path, "-o", Path(name) / "out.pt", "--json")
            size_bytes = path.stat().st_size
            ratio = done.peak_bytes / size_bytes
            too_much |= done.seconds >= MAX_SECONDS or ratio >= MAX_TIMES_ITS_SIZE
            kind = f"{json.loads(done.stdout)['kind']}, `{path.name}`"
            rows.append((kind, size_bytes / 1e6, done.seconds, done.peak_bytes / 1e6, ratio))
    headers = ("kind", "file, MB", "seconds", "peak above torch, MB", "peak / file")
    print(tabulate(rows, headers, tablefmt="github", floatfmt=("", ".0f", ".1f", ".0f", ".2f")))
    sys.exit(too_much)


if __name__ == "__main__":
    main()
