"""The 1000 classes of ImageNet's 2012 challenge: names for people, synsets for folders.

Published weights have them in this order, which is the synsets' alphabetical one; 1001 classes
are these behind a background class. The source of the names is noted in imagenet_classes.txt.
"""

from collections.abc import Collection, Sequence
from functools import cache
from importlib.resources import files

BACKGROUND = "background"


@cache
def names_by_synset() -> dict[str, str]:
    """`n01440764` -> `tench`, in class order."""
    text = files("irv2.data").joinpath("imagenet_classes.txt").read_text("utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return dict(line.split(" ", 1) for line in lines)


def class_names() -> list[str]:
    """All different, in class order."""
    return list(names_by_synset().values())


def folder_names(classes: Sequence[str], folders: Collection[str]) -> tuple[str, ...]:
    """Where the images of each class lie: a folder of its name, or of its synset as in ImageNet."""
    if set(folders) <= set(classes):
        return tuple(classes)
    synsets = {name: synset for synset, name in names_by_synset().items()}
    return tuple(
        name if name in folders or name not in synsets else synsets[name] for name in classes
    )
