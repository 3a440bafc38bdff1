"""The resampling kernel as it is built for aarch64, run by an emulator of that processor."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from irv2.images.bicubic import Kernel, Taps

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
SYSTEM = Path("/usr/aarch64-linux-gnu")  # its libraries, in Debian's package libc6-arm64-cross
DRIVER = Path(__file__).with_name("kernel_driver.c")
# What setup.py is told, so that it builds the very library that a wheel for aarch64 has
CROSS = {"CC": COMPILER, "LDSHARED": f"{COMPILER} -shared", "LDCXXSHARED": f"{COMPILER} -shared"}


def missing_tools() -> list[str]:
    """The programs without which nothing can be built for aarch64 and run here."""
    return [tool for tool in (COMPILER, EMULATOR) if not shutil.which(tool)]


@contextmanager
def cross_kernel(library: Path) -> Iterator[Kernel]:
    """The kernel of a library for aarch64; each call is one request to a process that runs it."""
    program = library.with_name("driver")
    subprocess.run([COMPILER, "-O1", DRIVER, library, "-o", program], check=True)
    command = [EMULATOR, "-L", SYSTEM, "-E", f"LD_LIBRARY_PATH={library.parent}", program]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([str(part) for part in command], **pipes) as process:

        def kernel(image_hwc: np.ndarray, rows: Taps, columns: Taps, out: np.ndarray) -> None:
            image = np.ascontiguousarray(image_hwc)
            height, width, _ = out.shape
            scratch = 4 * (3 * (image.shape[1] + 3) + 1 + 4 * (3 * width + 1))
            sizes = (image.strides[0], *image.shape[:2], height, width, image.nbytes, scratch)
            tables = (each.tobytes() for taps in (rows, columns) for each in taps)
            process.stdin.write(b"".join([np.int64(sizes).tobytes(), image.tobytes(), *tables]))
            process.stdin.flush()
            pixels = process.stdout.read(out.nbytes)
            assert len(pixels) == out.nbytes, "the process has ended"
            out[...] = np.frombuffer(pixels, np.uint8).reshape(out.shape)

        yield kernel
        process.stdin.close()
    assert process.returncode == 0
