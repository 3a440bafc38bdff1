"""Checkpoints come back bit for bit, or are refused in one line, whatever happened to the file."""

import io
import os
import pickle
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from process_output import read_line
from safetensors.torch import save_file

from irv2.checkpoint import SCHEMA, Checkpoint, content_sha256, load_model
from irv2.errors import CheckpointError
from irv2.images.preprocess import Preprocess
from irv2.manifest import Imported, Source
from irv2.model import inception_resnet_v2


def make_checkpoint(seed: int = 0) -> Checkpoint:
    torch.manual_seed(seed)
    model = inception_resnet_v2(num_classes=3, blocks=(1, 1, 1), width=0.125)
    return Checkpoint(
        model=model.config,
        state_dict=model.state_dict(),
        classes=["a", "b", "ç"],
        preprocess=Preprocess(resize=80, crop=75),
        setting="2",
        epoch=3,
        step=100,
        metrics={"top1_error": 1 / 3},
        recipe={"momentum": 0.4737, "decay": (12800, 0.96)},
        training={
            "random": torch.get_rng_state(),
            "half": torch.ones(2, dtype=torch.bfloat16),
            "scalar": torch.tensor(7),
            "empty": torch.zeros(0, 4),
            "nothing": None,
            "groups": [{"lr": 0.045, 1: True}],
        },
        begun_from=Source(
            checkpoint_sha256="1" * 64, arch="inception_resnet_v2", setting="imported", epoch=0,
            imported=Imported(file="a.pth", sha256="2" * 64, kind="timm weights", license="mit"),
        ),
    )  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return make_checkpoint()


@pytest.fixture
def path(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    checkpoint.save(tmp_path / "last.pt")
    return tmp_path / "last.pt"


@pytest.fixture(scope="module")
def saved(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("saved") / "last.pt"
    checkpoint.save(path)
    return path.read_bytes()


def same(a: object, b: object) -> bool:
    """Equal values, equal types, tensors equal bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b and type(a) is type(b)


def refused(path: Path) -> str:
    """The one line that refuses it; it names the file and the way out."""
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.load(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    assert "expected" in line
    return line


def test_a_checkpoint_comes_back_bit_for_bit(checkpoint, path):
    loaded = Checkpoint.load(path)
    for name in Checkpoint.__slots__:
        mine, other = getattr(checkpoint, name), getattr(loaded, name)
        if name == "state_dict":
            mine, other = dict(mine), dict(other)
        assert same(mine, other), name


def test_saving_again_gives_an_equal_checkpoint(path, tmp_path):
    again = tmp_path / "again.pt"
    Checkpoint.load(path).save(again)
    assert same(dict(Checkpoint.load(again).state_dict), dict(Checkpoint.load(path).state_dict))


def test_load_model_gives_the_network_in_eval_mode_with_the_same_logits(path):
    torch.manual_seed(0)
    original = inception_resnet_v2(num_classes=3, blocks=(1, 1, 1), width=0.125).eval()
    model = load_model(str(path))
    images = torch.randn(2, 3, 75, 75)
    assert not model.training
    with torch.no_grad():
        assert torch.equal(model(images), original(images))


def test_a_file_cut_anywhere_is_refused(saved, tmp_path):
    path = tmp_path / "cut.pt"
    for part in (0.0, 0.001, 0.3, 0.9, 0.999):
        path.write_bytes(saved[: int(len(saved) * part)])
        assert "half a checkpoint, or another format" in refused(path)
    path.write_bytes(saved[:-1])
    refused(path)


def test_a_flipped_byte_in_a_tensor_is_noticed(path):
    with zipfile.ZipFile(path) as archive:
        tensors = [info for info in archive.infolist() if "/data/" in info.filename]
    largest = max(tensors, key=lambda info: info.file_size)
    content = bytearray(path.read_bytes())
    # A stored entry: 30 bytes and its name, the extra field (which pads to 64), then the data.
    extra = int.from_bytes(
        content[largest.header_offset + 28 : largest.header_offset + 30], "little"
    )
    start = largest.header_offset + 30 + len(largest.filename) + extra
    content[start + largest.file_size // 2] ^= 1
    path.write_bytes(content)
    assert "do not match the hash inside" in refused(path)


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, about pickles that flips made odd
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(position=st.floats(0, 1), value=st.integers(1, 255), near_end=st.booleans())
def test_any_flipped_byte_is_refused_or_was_padding(
    checkpoint, saved, tmp_path, position, value, near_end
):
    # The zip's directory and the pickle are small, tensors large: half of the flips go there.
    length = min(6000, len(saved)) if near_end else len(saved) - 1
    damaged = bytearray(saved)
    damaged[-1 - int(position * length) if near_end else int(position * length)] ^= value
    path = tmp_path / "flipped.pt"
    path.write_bytes(damaged)
    try:
        loaded = Checkpoint.load(path)
    except CheckpointError:
        return
    assert same(dict(loaded.state_dict), dict(checkpoint.state_dict))
    assert same(loaded.training, checkpoint.training)


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize("as_zip", [True, False])
def test_code_in_a_pickle_is_never_run(tmp_path, monkeypatch, as_zip):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pt"
    content = {"schema": SCHEMA, "model": Malicious()}
    if as_zip:
        torch.save(content, path)
        assert "holds more than tensors and plain values" in refused(path)
    else:
        path.write_bytes(pickle.dumps(content))
        assert "another format" in refused(path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"conv.weight": torch.zeros(3)}, "schema missing"),
        ({"state_dict": {}, "epoch": 3}, "schema missing"),
        ([1, 2, 3], "holds a list"),
        (torch.zeros(3), "holds a Tensor"),
        ({"schema": "irv2.checkpoint/2"}, "schema irv2.checkpoint/2; expected irv2.checkpoint/1"),
        ({"schema": SCHEMA}, "do not match the hash inside"),
    ],
)
def test_a_checkpoint_of_another_program_is_refused(tmp_path, content, expected):
    path = tmp_path / "other.pt"
    torch.save(content, path)
    assert expected in refused(path)


def test_weights_of_elsewhere_are_told_which_program_takes_them(tmp_path):
    weights = {"conv.weight": torch.zeros(3)}
    files = [tmp_path / name for name in ("a.pth", "old.pth", "a.safetensors", "a.t7", "m.pth")]
    torch.save(weights, files[0])
    torch.save(weights, files[1], _use_new_zipfile_serialization=False)
    save_file(weights, files[2])
    files[3].write_bytes(b"\x04\x00\x00\x00" + bytes(100))
    torch.save({"model": torch.nn.Linear(1, 1)}, files[4])
    for path in files:
        assert refused(path).endswith(
            "a checkpoint that irv2-train wrote; if it holds weights from elsewhere: "
            f"irv2 import {path} -o CKPT.pt"
        )


def test_files_that_are_no_archive_are_refused(tmp_path):
    path = tmp_path / "notes.pt"
    for content in (b"", b"hello\n", pickle.dumps([1, 2]), bytes(1000)):
        path.write_bytes(content)
        assert f"another format ({len(content)} bytes)" in refused(path)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("readme.txt", "a zip, but not torch's")
    path.write_bytes(stream.getvalue())
    refused(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert "no such file" in refused(tmp_path / "gone.pt")
    assert "is a folder" in refused(tmp_path)


def test_another_network_or_preprocessing_is_refused(checkpoint, path):
    content = torch.load(path, weights_only=True)
    for changes, expected in [
        ({"arch": "resnet50"}, "network resnet50; expected inception_resnet_v2"),
        ({"preprocess": {**content["preprocess"], "crop": 74}}, "preprocessing hash"),
        ({"preprocess": {**content["preprocess"], "resampling": "new"}}, "not understood"),
    ]:
        # Its hash is right, as in a file that a later version of this program wrote.
        other = {key: value for key, value in (content | changes).items() if key != "sha256"}
        torch.save({**other, "sha256": content_sha256(other)}, path)
        assert expected in refused(path)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(checkpoint, path, tmp_path):
    before = path.read_bytes()
    unpicklable = replace(checkpoint, training={"function": lambda: None})
    with pytest.raises((AttributeError, pickle.PicklingError)):
        unpicklable.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


SAVE_FOR_EVER = """
import itertools, sys
from dataclasses import replace
from pathlib import Path
import torch
from irv2.checkpoint import Checkpoint
path = Path(sys.argv[1])
checkpoint = Checkpoint.load(path)
checkpoint = replace(checkpoint, training={"large": torch.zeros(1_000_000)})
for step in itertools.count(checkpoint.step + 1):
    replace(checkpoint, step=step).save(path)
    print(step, flush=True)
"""


def test_a_killed_save_leaves_a_whole_file(path):
    """SIGKILL a process that saves without pause, at many moments of the save."""
    steps = [Checkpoint.load(path).step]
    child = [sys.executable, "-c", SAVE_FOR_EVER, str(path)]
    for i in range(4):
        with subprocess.Popen(child, stdout=subprocess.PIPE, text=True) as process:
            last = 0
            for _ in range(3 + i):
                last = int(read_line(process.stdout))
            time.sleep(0.004 * i)  # a save takes some 10 ms
            process.send_signal(signal.SIGKILL)
        loaded = Checkpoint.load(path)
        assert loaded.step >= last > steps[-1]
        steps.append(loaded.step)


@pytest.mark.parametrize("names", [["a", "b"], ["a", "b", "c", "d"]])
def test_other_than_one_name_for_each_class_is_refused_in_one_line(checkpoint, tmp_path, names):
    replace(checkpoint, classes=names).save(tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match=rf"odd\.pt: names {len(names)} classes; expected 3"):
        Checkpoint.load(tmp_path / "odd.pt")
