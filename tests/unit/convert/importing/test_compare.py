"""`--compare`: the logits of the framework that weights come from, or exit 3."""

import numpy as np
import pytest
import torch
from tiny_checkpoint import PREPROCESS, make_checkpoint, write_images

from irv2.convert.importing.compare import compare
from irv2.errors import InputError, ParityError
from irv2.model.paper import Normalized


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(write_images(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (9, 75, 75, 3), np.uint8)


@pytest.fixture(scope="module")
def normalised(images) -> np.ndarray:
    return (images / np.float32(255) - PREPROCESS.mean) / PREPROCESS.std


@pytest.fixture(scope="module")
def logits(checkpoint, images) -> np.ndarray:
    model = Normalized(checkpoint.build_model(), PREPROCESS.mean, PREPROCESS.std)
    with torch.inference_mode():
        return model(torch.from_numpy(images)).numpy()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.npz"


def test_pixels_and_either_layout_of_what_the_network_takes_agree(
    checkpoint, images, normalised, logits, path
):
    for inputs in (images, normalised, normalised.transpose(0, 3, 1, 2)):
        np.savez(path, inputs=inputs, logits=logits)
        agreement = compare(checkpoint, path)
        assert (agreement.n, agreement.same_best) == (9, 9)
        assert agreement.share < 1e-3


def test_the_backgrounds_logits_are_left_out(checkpoint, images, logits, path):
    np.savez(path, inputs=images, logits=np.hstack([np.full((9, 1), 50), logits]))
    assert compare(checkpoint, path).same_best == 9


def test_logits_of_other_images_are_not_met(checkpoint, images, logits, path):
    np.savez(path, inputs=images ^ 1, logits=logits)
    with pytest.raises(ParityError, match=r"of the typical margin; expected at most 0\.01 of it"):
        compare(checkpoint, path)
    assert ParityError.exit_code == 3


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"inputs": np.zeros((9, 76, 76, 3), np.uint8)}, r"expected uint8 \(N, 75, 75, 3\), or"),
        ({"inputs": np.zeros((9, 3, 75, 75), np.uint8)}, r"expected uint8 \(N, 75, 75, 3\), or"),
        ({"inputs": np.zeros((9, 75, 75, 3), np.int64)}, r"inputs torch.int64 \(9, 75, 75, 3\)"),
        ({"inputs": np.zeros((8, 75, 75, 3), np.uint8)}, r"inputs \(8, 75, 75, 3\) and logits"),
        ({"inputs": np.array(["text"])}, "unreadable"),
        ({"logits": np.zeros((9, 3))}, "logits of 3 classes; expected 6"),
        ({"logits": np.full((9, 6), np.nan)}, "logits that are not finite"),
        ({"logits": np.array([{}])}, "unreadable"),
    ],
)
def test_arrays_that_can_not_be_compared_are_named(
    checkpoint, images, logits, path, change, expected
):
    np.savez(path, **{"inputs": images, "logits": logits, **change})
    with pytest.raises(InputError, match=expected):
        compare(checkpoint, path)


def test_files_of_another_kind_are_named(checkpoint, path):
    np.savez(path, images=np.zeros(1))
    with pytest.raises(InputError, match="unreadable"):
        compare(checkpoint, path)
    for content in (b"", b"PK\x03\x04", b"text"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="expected arrays `inputs` and `logits`"):
            compare(checkpoint, path)
