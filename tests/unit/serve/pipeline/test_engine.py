"""What an engine has read is what was checked, whatever happens to the folder meanwhile."""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from serving_site import OPTIONS
from signing import key_pair
from tiny_bundle import write_tiny_bundle

from irv2.bundle import Bundle
from irv2.errors import BundleError
from irv2.runners.choose import open_best
from irv2.serve.pipeline.engine import OpenedModel, open_model
from irv2.trust.keys import read_signer
from irv2.trust.sign import sign


@pytest.fixture
def good(tmp_path) -> Path:
    return write_tiny_bundle(tmp_path / "good.bundle")


@pytest.fixture
def evil(tmp_path) -> Path:
    return write_tiny_bundle(tmp_path / "evil.bundle", seed=1)


def opened_while(change: Callable[[], object], path: Path, good: Path) -> OpenedModel:
    """Open a signed bundle, and change something after the hashes were checked.

    The key is a pipe, for which the server waits then.
    """
    keys, pipe = key_pair(good.parent), good.parent / "key.pipe"
    sign(good, read_signer(keys.private))
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as pool:
        opening = pool.submit(open_model, path, replace(OPTIONS, require_signature=pipe))
        with pipe.open("wb") as writing:
            change()
            writing.write(keys.public.read_bytes())
        return opening.result()


def replace_folder(good: Path, evil: Path) -> None:
    shutil.copytree(good, good.with_name("next"))
    shutil.copy(evil / "model.onnx", good.with_name("next"))
    good.rename(good.with_name("aside"))
    good.with_name("next").rename(good)


@pytest.mark.parametrize(
    "change",
    [
        lambda good, evil: shutil.copy2(evil / "model.onnx", good / "model.onnx"),
        lambda good, evil: (evil / "model.onnx").replace(good / "model.onnx"),
        replace_folder,
    ],
    ids=["written", "renamed", "folder"],
)
def test_what_changes_between_the_check_and_the_engine_is_not_served(good, evil, change):
    with pytest.raises(BundleError, match=r"good\.bundle: was changed while it was opened"):
        opened_while(lambda: change(good, evil), good, good)


def test_a_link_that_is_turned_meanwhile_leads_to_what_was_checked(good, evil, tmp_path):
    link = tmp_path / "current"
    link.symlink_to(good)

    def turn() -> None:
        (tmp_path / "next").symlink_to(evil)
        (tmp_path / "next").replace(link)

    runner = opened_while(turn, link, good).choice.runner
    checked = open_best(good, Bundle.open(good).artifacts, num_threads=1).runner
    images = np.full((1, runner.image_size, runner.image_size, 3), 99, np.uint8)
    assert np.array_equal(runner.run(images), checked.run(images))
