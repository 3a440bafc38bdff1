"""A folder that holds what folders hold: pictures, links to nowhere, odd names, a shard, a pipe."""

import os
import tarfile
from pathlib import Path

import numpy as np
from pictures import save

ODD_NAMES = [b"a/\xff.jpg", 'a/é ,"x.jpg'.encode(), b"a/one\r\ntwo.JPG"]
NAMES = ["0.jpg", "b/1.jpg", "b/2.jpg", "b/no picture.png", "b/shard.tar/cat/1.jpg", "gone.jpg"]
ALL_NAMES = sorted(NAMES + [os.fsdecode(name) for name in ODD_NAMES])
BAD_NAMES = {"b/no picture.png": "NOT_AN_IMAGE", "gone.jpg": "UNREADABLE"}


def jpeg(number: int) -> bytes:
    """A picture of four colours of its own."""
    colours = np.random.default_rng(number).integers(0, 256, (2, 2, 3), np.uint8)
    return save(colours.repeat(40, 0).repeat(40, 1), "JPEG")


def write_folder(root: Path) -> Path:
    """Write a folder that holds `NAMES` and `ODD_NAMES`, and files that are none of them."""
    names = [*ODD_NAMES, b"b/1.jpg", b"b/2.jpg", b"0.jpg", b".hidden/1.jpg", b"b/.1.jpg"]
    for number, name in enumerate(names):
        path = root / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    (root / "b" / "notes.txt").write_text("no picture")
    (root / "b" / "no picture.png").write_bytes(b"no picture")
    (root / "gone.jpg").symlink_to("nowhere")
    (root / "linked.jpg").symlink_to("b")
    os.mkfifo(root / "pipe.jpg")
    with tarfile.open(root / "b" / "shard.tar", "w") as shard:
        shard.add(root / "0.jpg", "cat/1.jpg")
        shard.add(root / "b" / "notes.txt", "cat/1.cls")
    return root
