"""Paths of images that can't be read, each for a reason of its own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

NOBODY = 65534


def unreadable_paths(folder: Path) -> list[str | Path]:
    """A file that is gone, a folder, a link to itself, and names that no file can have."""
    loop = folder / "loop.jpg"
    loop.symlink_to(loop)
    names = ["x" * 256, "nul\0.jpg", "\ud800.jpg"]
    return [folder / "gone.jpg", folder, loop, *(f"{folder}/{name}" for name in names), ""]


@contextmanager
def file_in_a_closed_folder() -> Iterator[Path]:
    """A file whose folder may be listed, but not entered, also if this process runs as root."""
    user = os.geteuid()
    with TemporaryDirectory() as name:  # not below a folder that root alone may enter
        file = Path(name, "closed.jpg")
        file.write_bytes(b"any")
        file.parent.chmod(0o444)
        try:
            if user == 0:
                os.seteuid(NOBODY)
            yield file
        finally:
            os.seteuid(user)
            file.parent.chmod(0o700)
