"""Files of weights are recognised by content, under any name; what is none ends in one line."""

import argparse
import io
import json
import os
import pickle
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from imported import imported, refused
from safetensors.torch import save
from slim_network import write_keras_2, write_keras_3, write_keras_archive
from torch7_writer import Object, dumps

from irv2.convert.importing.recognise import read_weights
from irv2.convert.importing.slim import FIRST_TENSOR

TENSORS = {"conv.weight": torch.ones(2)}
LAYERS = {"conv": {"kernel": np.ones((3, 3, 3, 2), np.float32)}}
# What each reader says of weights that are not the network's: proof that it has read them.
READ = "tensors of another network (conv.weight, ...)"
READ_BY_KERAS = "layers of another network (conv, ...)"
READ_BY_TORCH7 = "is a nn.LookupTable"


def torch_file(content: object, **options: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def keras_file(write, **options) -> bytes:
    path = options.pop("folder") / "written"
    write(path, LAYERS, **options)
    return path.read_bytes()


KINDS = {
    "t7": (lambda _: dumps(Object("nn.LookupTable")), READ_BY_TORCH7),
    "zipped pth": (lambda _: torch_file(TENSORS), READ),
    "old pth": (lambda _: torch_file(TENSORS, _use_new_zipfile_serialization=False), READ),
    "safetensors": (lambda _: save(TENSORS), READ),
    "h5": (lambda folder: keras_file(write_keras_2, folder=folder), READ_BY_KERAS),
    "weights.h5": (
        lambda folder: keras_file(write_keras_3, folder=folder, named=True),
        READ_BY_KERAS,
    ),
    "keras": (lambda folder: keras_file(write_keras_archive, folder=folder), READ_BY_KERAS),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_name_of_a_file_is_no_matter(tmp_path, kind):
    write, expected = KINDS[kind]
    content = write(tmp_path)
    for suffix in ("", ".t7", ".pth", ".safetensors", ".h5", ".weights.h5", ".keras", ".txt"):
        path = tmp_path / f"file{suffix}"
        path.write_bytes(content)
        assert expected in refused(lambda path=path: read_weights(path)), path.name


@pytest.mark.parametrize("start", [b"\x80", b"\x80\x02", b"PK", b"3\n", b"4\n"])
def test_safetensors_whose_length_begins_like_another_format_are_read(tmp_path, start):
    """The first eight bytes are the length of the header, padded with spaces."""
    header = {"conv.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    length = int.from_bytes(start.ljust(2, b"\x01"), "little")
    content = struct.pack("<Q", length) + json.dumps(header).encode().ljust(length) + bytes(8)
    assert content.startswith(start)
    (tmp_path / "weights.pth").write_bytes(content)
    assert READ in refused(lambda: read_weights(tmp_path / "weights.pth"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "an unknown format (0 bytes)"),
        (b"plain text, no weights", "an unknown format"),
        (b"4\n1\n3\nV 1\n13\nnn.Sequential\n", "Torch7 file in text format"),
        (b"PK\x03\x04 but no zip", "half a file"),
        (b"\x89HDF\r\n\x1a\n and no more", "unreadable Keras file"),
        (b"\x10\0\0\0\0\0\0\0{ no header }   ", "damaged safetensors file"),
    ],
)
def test_foreign_files_are_refused(tmp_path, content, expected):
    (tmp_path / "file").write_bytes(content)
    assert expected in refused(lambda: imported(tmp_path / "file"))


def test_an_archive_with_a_damaged_name_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("é", b"")
    content = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(content.replace("é".encode(), b"\xff\xff"))
    assert "half a file, or a damaged one (" in refused(lambda: imported(tmp_path / "a.pth"))


def test_what_holds_no_weights_is_named(tmp_path):
    torch.save(torch.ones(2), tmp_path / "tensor.pth")
    assert "holds a Tensor" in refused(lambda: imported(tmp_path / "tensor.pth"))
    torch.save({"epoch": 3}, tmp_path / "state.pth")
    assert "epoch is no tensor" in refused(lambda: imported(tmp_path / "state.pth"))
    assert "is a folder" in refused(lambda: imported(tmp_path))
    assert "no such file" in refused(lambda: imported(tmp_path / "gone.pth"))


def test_a_training_state_of_timm_is_read_with_the_options_in_it(tmp_path):
    state = {"epoch": 3, "args": argparse.Namespace(lr=0.1, model="x"), "state_dict": TENSORS}
    torch.save(state, tmp_path / "a.pth")
    assert READ in refused(lambda: imported(tmp_path / "a.pth"))


@pytest.mark.parametrize("protocol", [0, 1, 3, 4, 5])
def test_pickles_of_other_programs_are_one_line_without_torchs_warnings(tmp_path, protocol):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"a": np.ones(2)}, protocol))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        line = refused(lambda: imported(tmp_path / "a.pkl"))
    assert not caught
    expected = "an unknown format" if protocol < 2 else "holds Python objects or code"
    assert expected in line


def test_a_torchscript_program_is_named_with_the_way_out(tmp_path):
    """As torch.jit.save lays it out; its like is deprecated in torch itself."""
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "version", "code/__torch__.py"):
            archive.writestr(f"a/{name}", b"")
    line = refused(lambda: imported(tmp_path / "a.pt"))
    assert "is a TorchScript program, which is not loaded" in line
    assert line.endswith("torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)")


@pytest.mark.parametrize("kind", ["sparse_coo", "meta", "nested"])
def test_tensors_that_are_not_dense_are_refused(tmp_path, kind):
    with warnings.catch_warnings(action="ignore"):  # torch calls nested tensors a prototype
        tensor = {
            "sparse_coo": lambda: torch.eye(3).to_sparse(),
            "meta": lambda: torch.ones(3, device="meta"),
            "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        }[kind]()
        torch.save({FIRST_TENSOR: tensor}, tmp_path / "a.pth")
    line = refused(lambda: imported(tmp_path / "a.pth"))
    assert f"{FIRST_TENSOR} is sparse, nested or without values; expected dense tensors" in line


class Code:
    """What a pickle can do when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_with_code_in_it_is_refused_and_the_code_does_not_run(tmp_path, zipped):
    content = {"conv2d_1a.conv.weight": torch.ones(1), "x": Code(tmp_path / "owned")}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    line = refused(lambda: imported(tmp_path / "a.pth"))
    assert "holds Python objects or code, which are not loaded (posix.mkdir)" in line
    assert not (tmp_path / "owned").exists()
    pickle.loads(pickle.dumps(content["x"]))  # it would have
    assert (tmp_path / "owned").exists()


def test_options_may_not_hide_code_either(tmp_path):
    torch.save(
        {"args": argparse.Namespace(run=Code(tmp_path / "owned")), "state_dict": TENSORS},
        tmp_path / "a.pth",
    )
    assert "(posix.mkdir)" in refused(lambda: imported(tmp_path / "a.pth"))
    assert not (tmp_path / "owned").exists()
