"""The compiled kernel, built here from its source, against NumPy's, byte for byte.

For this processor, and for aarch64 where a cross compiler and an emulator are installed.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cross_kernel import CROSS, cross_kernel, missing_tools
from project import ROOT

from irv2.images.bicubic import Kernel, load_kernel, numpy_kernel, taps


def build(folder: Path, **environment: str) -> list[Path]:
    """The libraries that setup.py makes in `folder`."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", folder]
    command += ["--build-temp", folder / "temp"]
    subprocess.run(command, cwd=ROOT, env=os.environ | environment, check=True, capture_output=True)
    return list(folder.glob("irv2/images/_bicubic*"))


@pytest.fixture(scope="module", params=["here", "aarch64"])
def compiled(request, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    folder = tmp_path_factory.mktemp("kernel")
    if request.param == "here":
        [library] = build(folder)
        yield load_kernel(str(library))
        return
    if missing := missing_tools():
        pytest.skip(f"not installed: {', '.join(missing)}")
    [library] = build(folder, **CROSS)
    with cross_kernel(library) as kernel:
        yield kernel


def assert_equal(
    compiled: Kernel,
    image: np.ndarray,
    height: int,
    width: int,
    window: tuple[int, int, int, int] | None = None,
) -> None:
    """Both kernels make the same bytes of `image` resized to (height, width), or a part of it."""
    top, left, rows, columns = window or (0, 0, height, width)
    tables = (
        taps(image.shape[0], height, top, rows),
        taps(image.shape[1], width, left, columns),
    )
    found, expected = np.zeros((2, rows, columns, 3), np.uint8)
    compiled(image, *tables, found)
    numpy_kernel(image, *tables, expected)
    np.testing.assert_array_equal(found, expected)


def test_both_kernels_give_the_same_bytes_at_any_size_and_window(compiled):
    rng = np.random.default_rng(0)
    for _ in range(400):
        src_height, src_width, height, width = rng.integers(1, 60, 4).tolist()
        image = rng.integers(0, 256, (src_height, src_width, 3), dtype=np.uint8)
        top, left = rng.integers(0, [height, width]).tolist()
        rows, columns = rng.integers(1, [height - top, width - left], endpoint=True).tolist()
        assert_equal(compiled, image, height, width)
        assert_equal(compiled, image, height, width, (top, left, rows, columns))


@pytest.mark.parametrize(
    "sizes",
    [(375, 500, 328, 437), (500, 375, 437, 328), (1200, 1600, 328, 437), (40, 31, 299, 299)],
)
def test_both_kernels_give_the_same_bytes_at_the_sizes_of_photographs(compiled, sizes):
    src_height, src_width, height, width = sizes
    image = np.random.default_rng(1).integers(0, 256, (src_height, src_width, 3), dtype=np.uint8)
    assert_equal(compiled, image, height, width)
    window = (height - 299 + 1) // 2, (width - 299 + 1) // 2, 299, 299
    assert_equal(compiled, image, height, width, window)


def test_part_of_a_picture_is_read_where_it_lies(compiled):
    whole = np.random.default_rng(2).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    for part in (whole[7:71, 11:99], whole[::2], whole[:, ::-1], whole[:, :, ::-1]):
        assert_equal(compiled, part, 75, 75)


@pytest.mark.parametrize("compiled", ["here"], indirect=True)
def test_other_threads_run_while_the_compiled_kernel_works(compiled):
    image = np.zeros((4, 4, 3), np.uint8)
    out = np.empty((6000, 6000, 3), np.uint8)
    tables = taps(4, 6000, 0, 6000)
    started, finished = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        compiled(image, tables, tables, out)
        finished.set()

    thread = threading.Thread(target=work)
    thread.start()
    started.wait()
    turns = 0
    while not finished.is_set():
        time.sleep(0.001)
        turns += 1
    thread.join()
    assert turns > 5  # a kernel that keeps the lock leaves one or two


def test_an_installation_without_a_compiler_goes_on_without_the_kernel(tmp_path):
    assert build(tmp_path, CC="/bin/false") == []
