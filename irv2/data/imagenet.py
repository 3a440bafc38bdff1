"""The 1000 classes of ImageNet's 2012 challenge: names for people, synsets for folders.

Published weights have them in this order, the alphabetical order of the synsets; networks with 1001
classes have a background class in front. imagenet_classes.txt gives the source of the names.
"""

from collections.abc import Collection, Sequence
from functools import cache
from importlib.resources import files

BACKGROUND = "background"


@cache
def names_by_synset() -> dict[str, str]:
    """Map synsets to names (`n01440764` -> `tench`), in class order."""
    text = files("irv2.data").joinpath("imagenet_classes.txt").read_text("utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return dict(line.split(" ", 1) for line in lines)


def class_names() -> list[str]:
    """Return the names, which are all different, in class order."""
    return list(names_by_synset().values())


def folder_names(classes: Sequence[str], folders: Collection[str]) -> tuple[str, ...]:
    """Return each class's folder, named after the class or, as in ImageNet, after its synset."""
    if set(folders) <= set(classes):
        return tuple(classes)
    synsets = {name: synset for synset, name in names_by_synset().items()}
    return tuple(
        name if name in folders or name not in synsets else synsets[name] for name in classes
    )
