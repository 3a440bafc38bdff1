"""What files and options say of the images that a network takes, and who says it.

What none of them says is as the published network has it. Two files that contradict each other,
and what this preprocessing can't do, are refused; an option decides.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from irv2.errors import CheckpointError
from irv2.images.preprocess import Preprocess
from irv2.images.resample import RESAMPLERS

PARAMETERS = ("resize", "crop", "resampling", "mean", "std")
SMALLEST_CROP = 75  # of a smaller square the network leaves nothing
PUBLISHED = "the published network's"  # the source of what nobody says
# timm's words, and the option that makes them void.
OPTION_INSTEAD = {"crop_pct": "resize", "crop_mode": "resize"}


@dataclass(frozen=True, slots=True)
class Statement:
    """Values by the names of `PARAMETERS` and `OPTION_INSTEAD`; a text where one can't be read.

    `crop_pct` is the crop's share of the shorter side. Any `crop_mode` is one that we lack.
    """

    source: str
    values: Mapping[str, Any]


def settle(
    default: Preprocess, statements: Sequence[Statement], options: Mapping[str, Any], path: Path
) -> tuple[Preprocess, dict[str, str]]:
    """The preprocessing, and the source of each parameter; `options` have the last word.

    Raises CheckpointError about `path` for what is contradictory or can't be done.
    """
    values, sources = _merged(statements, options, path)
    _refuse_unknown(values, sources, path)
    crop = values.get("crop", default.crop)
    if crop < SMALLEST_CROP:
        raise CheckpointError(
            path, f"crop is {crop} in {sources['crop']}", f"{SMALLEST_CROP} pixels or more"
        )
    if "crop_pct" in values:
        values["resize"] = math.floor(crop / values.pop("crop_pct"))
        sources["resize"] = sources["crop_pct"]
    values.setdefault("resize", crop * default.resize // default.crop)
    settled = {name: sources.get(name, PUBLISHED) for name in PARAMETERS}
    if "orientation" in sources:  # of which no file says anything
        settled["orientation"] = sources["orientation"]
    return replace(default, **values), settled


def _merged(
    statements: Sequence[Statement], options: Mapping[str, Any], path: Path
) -> tuple[dict[str, Any], dict[str, str]]:
    """All values and their sources; raises CheckpointError where two statements differ."""
    values, sources = dict(options), {name: f"--{name}" for name in options}
    for statement in statements:
        for name, value in statement.values.items():
            option = OPTION_INSTEAD.get(name, name)
            if option in options:
                continue
            if values.setdefault(name, value) != value:
                raise CheckpointError(
                    path,
                    f"{name} is {values[name]} in {sources[name]}, {value} in {statement.source}",
                    "one value",
                    f"--{option} decides",
                )
            sources.setdefault(name, statement.source)
    return values, sources


def _refuse_unknown(values: Mapping[str, Any], sources: Mapping[str, str], path: Path) -> None:
    """Raise CheckpointError for the first value that this preprocessing can't take over."""
    for name, value in values.items():
        option = OPTION_INSTEAD.get(name, name)
        if name == "crop_mode" or (name == "resampling" and value not in RESAMPLERS):
            expected = "center" if name == "crop_mode" else " or ".join(RESAMPLERS)
            way_out = f"--{option} takes these weights with another, at some cost in accuracy"
        elif isinstance(value, str) and name != "resampling":
            expected, way_out = "numbers", f"--{option} says it"
        else:
            continue
        raise CheckpointError(path, f"{name} is {value} in {sources[name]}", expected, way_out)


def described_sources(sources: Mapping[str, str]) -> str:
    """`crop, mean: config.json; resize: --resize`."""
    return "; ".join(
        f"{', '.join(name for name in sources if sources[name] == source)}: {source}"
        for source in dict.fromkeys(sources.values())
    )
