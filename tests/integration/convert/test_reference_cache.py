"""The checkpoint is asked once per images; what is kept is never taken for something else."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from exported import Exported
from PIL import Image
from tiny_checkpoint import CLASSES

from irv2.checkpoint import Checkpoint
from irv2.convert.gate.reference_cache import classify_with_reference
from irv2.data.dataset import open_split
from irv2.runners.onnx import OnnxRunner


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "irv2" / "reference"


@pytest.fixture(scope="module")
def checkpoint(exported: Exported) -> Checkpoint:
    return Checkpoint.load(exported.checkpoint_path)


def ask(checkpoint: Checkpoint, data: Path, sha256: str = "a"):
    return classify_with_reference(checkpoint, sha256, [], open_split(data, "val", CLASSES))[0]


def test_second_time_the_answers_are_the_first_ones_without_torch_running(
    checkpoint, exported, cache
):
    first = ask(checkpoint, exported.data)
    # Another network under the same identity would answer otherwise, if it were asked.
    weights = {name: 0 * value for name, value in checkpoint.state_dict.items()}
    second = ask(dataclasses.replace(checkpoint, state_dict=weights), exported.data)
    np.testing.assert_array_equal(first.logits, second.logits)
    assert (second.sha256, second.files) == (first.sha256, first.files)
    assert len(list(cache.iterdir())) == 1


def test_artefacts_are_run_in_either_case_over_the_same_images(checkpoint, exported, cache):
    images = open_split(exported.data, "val", CLASSES)
    with OnnxRunner(exported.bundle / "model.onnx") as runner:
        both = [classify_with_reference(checkpoint, "a", [runner], images) for _ in range(2)]
    for checkpoints, artefacts in both:
        assert artefacts.sha256 == checkpoints.sha256
        # Float32, summed in another order.
        largest = np.abs(checkpoints.logits).max()
        np.testing.assert_allclose(
            artefacts.logits, checkpoints.logits, rtol=0, atol=1e-4 * largest
        )


def test_another_checkpoint_or_another_image_is_asked_again(checkpoint, exported, cache, tmp_path):
    data = shutil.copytree(exported.data, tmp_path / "data")
    ask(checkpoint, data)
    ask(checkpoint, data, sha256="b")
    assert len(list(cache.iterdir())) == 2
    Image.new("RGB", (90, 90)).save(data / "val" / "red" / "0.png")
    assert ask(checkpoint, data).sha256 != ask(checkpoint, exported.data).sha256
    assert len(list(cache.iterdir())) == 3  # contents count, not where they lie


def test_another_version_of_a_decoder_is_asked_again(checkpoint, exported, cache, monkeypatch):
    ask(checkpoint, exported.data)
    monkeypatch.setattr("PIL.__version__", "0")
    ask(checkpoint, exported.data)
    assert len(list(cache.iterdir())) == 2


def test_answers_of_another_checkpoint_under_this_ones_name_are_computed_again(
    checkpoint, exported, cache, caplog
):
    expected = ask(checkpoint, exported.data, "mine")
    [mine] = cache.iterdir()
    weights = {name: 0 * value for name, value in checkpoint.state_dict.items()}
    ask(dataclasses.replace(checkpoint, state_dict=weights), exported.data, "theirs")
    [theirs] = set(cache.iterdir()) - {mine}
    shutil.copyfile(theirs, mine)
    with caplog.at_level("INFO"):
        again = ask(checkpoint, exported.data, "mine")
    np.testing.assert_array_equal(again.logits, expected.logits)
    assert "the reference of something else, made again" in caplog.text


@pytest.mark.parametrize("damage", [b"", b"no archive", None], ids=["empty", "garbage", "half"])
def test_a_damaged_entry_is_said_and_computed_again(checkpoint, exported, cache, caplog, damage):
    first = ask(checkpoint, exported.data)
    [path] = cache.iterdir()
    path.write_bytes(path.read_bytes()[:300] if damage is None else damage)
    again = ask(checkpoint, exported.data)
    np.testing.assert_array_equal(first.logits, again.logits)
    assert "unreadable reference, made again" in caplog.text
