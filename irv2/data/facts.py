"""What each image of a data set is: readable or not, its format and kind, and its look."""

import hashlib
import io
import logging
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import cv2
import imagehash
import numpy as np
from PIL import ExifTags, Image

from irv2.data.dataset import BadImages, ImageFolder
from irv2.errors import DataError, ImageError
from irv2.images.decode import FILE_LIMITS, FORMATS, decode
from irv2.system.files import is_file_or_unreadable
from irv2.system.machine import num_cores
from irv2.system.progress import Progress
from irv2.system.text import first_few, quoted
from irv2.types import UInt8Array

logger = logging.getLogger(__name__)

LOOK_BYTES = 32  # 16 x 16 signs of the cosine transform
COLOURS_SIDE = 4
AT_A_TIME = 64  # images that a thread is given


class Facts(NamedTuple):
    """One image; all but `sha256` and `problem` mean nothing if there is a problem."""

    sha256: str = ""  # of the file; empty if it can't be read
    problem: str = ""
    format: str = ""
    width: int = 0
    height: int = 0
    mode: str = ""  # Pillow's, of the file
    has_alpha: bool = False
    orientation: int = 1  # EXIF's
    look: bytes = bytes(LOOK_BYTES)
    colours: bytes = bytes(3 * COLOURS_SIDE**2)  # a tiny RGB thumbnail

    @property
    def is_grey(self) -> bool:
        """Whether the file holds grey levels alone."""
        return self.mode in ("1", "L", "LA") or self.mode.startswith("I")


def look_at(folders: Sequence[ImageFolder]) -> list[list[Facts]]:
    """Decode every image of these folders, on all cores."""
    parts = [
        (folder, range(start, min(start + AT_A_TIME, len(folder))))
        for folder in folders
        for start in range(0, len(folder), AT_A_TIME)
    ]
    found: dict[int, list[Facts]] = {id(folder): [] for folder in folders}
    total = sum(map(len, folders))
    with Progress("look at images", total) as bar, ThreadPoolExecutor(num_cores()) as pool:
        for (folder, _), facts in zip(parts, pool.map(_look_at_part, parts), strict=True):
            found[id(folder)] += facts
            bar.advance(len(facts))
    return [found[id(folder)] for folder in folders]


def _look_at_part(part: tuple[ImageFolder, range]) -> list[Facts]:
    folder, indices = part
    return [_facts(folder, i) for i in indices]


def _facts(folder: ImageFolder, i: int) -> Facts:
    sha256 = ""
    try:
        if folder.spans is None and not is_file_or_unreadable(folder.path(i)):
            return Facts(problem="not a regular file")
        encoded = folder.read(i)
        sha256 = hashlib.sha256(encoded).hexdigest()
        image_hwc = decode(encoded, FILE_LIMITS)
    except ImageError as error:
        return Facts(sha256, str(error.about("")).removeprefix(": "))
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
        return Facts(
            sha256=sha256,
            format=image.format or "",
            width=image.width,
            height=image.height,
            mode=image.mode,
            has_alpha=image.has_transparency_data,
            orientation=_orientation(image),
            look=_look(image_hwc),
            colours=cv2.resize(
                image_hwc, (COLOURS_SIDE, COLOURS_SIDE), interpolation=cv2.INTER_AREA
            ).tobytes(),
        )


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (OSError, SyntaxError, ValueError, struct.error):  # damaged metadata says nothing
        return 1
    return found if found in range(1, 9) else 1


def _look(image_hwc: UInt8Array) -> bytes:
    signs = imagehash.phash(Image.fromarray(image_hwc), hash_size=16).hash
    return np.packbits(signs).tobytes()


def refuse_unreadable(
    folder: ImageFolder, facts: Sequence[Facts], bad_images: BadImages
) -> list[int]:
    """Return which images are readable; raises DataError for others, or logs them if skipped."""
    bad = [i for i, fact in enumerate(facts) if fact.problem]
    if bad:
        got = f"{len(bad)} of {len(facts)} images can't be read"
        each = [f"{quoted(folder.files[i])}: {facts[i].problem}" for i in bad]
        named = first_few(each, separator="; ")
        if bad_images == "error":
            way_out = "replace or remove them, or pass --bad-images skip"
            raise DataError(folder.place, f"{got} ({named})", "whole images", way_out)
        logger.warning("%s: %s and are left out: %s", folder.place, got, named)
    return [i for i, fact in enumerate(facts) if not fact.problem]
