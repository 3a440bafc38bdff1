"""What timm's files say of weights: `config.json` beside them, and `args` in a training state.

Read are the images' size and normalisation, and the names of the classes. What would make it
another network is refused. What timm's own programs fall back on is TF-slim's (slim.py).
"""

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from irv2.convert.importing.statements import Statement
from irv2.convert.importing.weights import PublishedWeights
from irv2.errors import CheckpointError

CONFIG = "config.json"
ARGS = "args in the file"
ARCHITECTURE = "inception_resnet_v2"
AVERAGE_POOLS = ("avg", "fast", "fastavg")
RESAMPLING = {"bicubic": "pillow-bicubic"}
PLAIN_ARGUMENTS = {"num_classes", "global_pool", "in_chans", "drop_rate"}  # checked or at no cost
MOVE = "it describes the weights in its folder; keep the two apart"


@dataclass(frozen=True, slots=True)
class _Facts:
    """What one source says, by timm's names; those of None say nothing."""

    source: str
    what: object  # the subject of an error
    fields: Mapping[str, Any]

    def get(self, name: str) -> Any:  # noqa: ANN401 (any file's)
        return self.fields.get(name)

    def refuse(self, name: str, expected: str, way_out: str = "") -> CheckpointError:
        return CheckpointError(self.what, f"{name} {self.get(name)}", expected, way_out)


def described(weights: PublishedWeights, args: object, path: Path) -> PublishedWeights:
    """The weights with what timm says of them; raises CheckpointError for another network."""
    found = []
    if isinstance(args, argparse.Namespace | Mapping):
        found.append(_of_args(args if isinstance(args, Mapping) else vars(args), path))
    config_path, notes = path.with_name(CONFIG), list(weights.notes)
    if config_path.is_file():
        config = _json(config_path)
        if "architecture" in config:
            found.append(_of_config(config, config_path))
        else:
            notes.append(f"{config_path} is not timm's and was not used")
    classes, classes_from = None, ""
    for facts in found:
        _check_network(facts, weights)
        if facts.get("label_names"):
            classes, classes_from = _names(facts, weights.config.num_classes), facts.source
    return replace(
        weights,
        statements=tuple(Statement(facts.source, _values(facts)) for facts in found),
        classes=classes,
        classes_from=classes_from,
        notes=tuple(notes),
    )


def _json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"no JSON ({error})", "timm's configuration", MOVE) from error
    return content if isinstance(content, Mapping) else {}


def _of_config(config: Mapping[str, Any], path: Path) -> _Facts:
    """The fields of a configuration, whose older form has those of `pretrained_cfg` on top."""
    inner, arguments = config.get("pretrained_cfg") or {}, config.get("model_args") or {}
    if not isinstance(inner, Mapping) or not isinstance(arguments, Mapping):
        raise CheckpointError(path, "pretrained_cfg or model_args is no object", "timm's", MOVE)
    _check_arguments(arguments, path)
    own = {name: value for name, value in config.items() if value is not None}
    return _Facts(CONFIG, path, {**inner, **arguments, **own})


def _of_args(args: Mapping[str, Any], path: Path) -> _Facts:
    """The options of a training, under the configuration's names."""
    fields = dict(args)
    model = str(fields.get("model") or ARCHITECTURE)
    if ":" not in model:  # hf-hub:NAME and local-dir:NAME do not tell
        fields["architecture"] = model.partition(".")[0]
    if fields.get("gp"):
        fields["global_pool"] = fields["gp"]
    if fields.get("input_size") is None:
        fields["input_size"] = fields.get("img_size")
    arguments = fields.get("model_kwargs") or {}
    if isinstance(arguments, Mapping):
        _check_arguments(arguments, f"{path}: {ARGS}")
        fields |= arguments
    return _Facts(ARGS, f"{path}: {ARGS}", fields)


def _check_arguments(arguments: Mapping[str, Any], what: object) -> None:
    if unknown := sorted(arguments.keys() - PLAIN_ARGUMENTS):
        name = unknown[0]
        raise CheckpointError(
            what, f"the network was built with {name} {arguments[name]}", "timm's default"
        )


def _check_network(facts: _Facts, weights: PublishedWeights) -> None:
    if facts.get("architecture") not in (None, ARCHITECTURE):
        raise facts.refuse("architecture", ARCHITECTURE, MOVE)
    if facts.get("global_pool") not in (None, "", *AVERAGE_POOLS):
        raise facts.refuse(
            "global_pool", "avg, the network's", "its classifier has to be retrained"
        )
    if facts.get("in_chans") not in (None, 3):
        raise facts.refuse("in_chans", "3")
    if facts.get("problem_type") not in (None, "", "single_label_classification"):
        raise facts.refuse("problem_type", "single_label_classification, one class per image")
    if facts.get("num_classes") not in (None, weights.config.num_classes):
        raise facts.refuse("num_classes", f"{weights.config.num_classes}, as in the weights", MOVE)


def _values(facts: _Facts) -> dict[str, Any]:
    """What is said of the images, under the names of a Statement."""
    values: dict[str, Any] = {}
    if (size := facts.get("input_size")) is not None:
        values["crop"] = _side(size, facts)
    if facts.get("crop_pct"):
        values["crop_pct"] = _numbers("crop_pct", 1, facts)[0]
    if facts.get("crop_mode") not in (None, "", "center"):
        values["crop_mode"] = str(facts.get("crop_mode"))
    if facts.get("interpolation"):
        name = str(facts.get("interpolation"))
        values["resampling"] = RESAMPLING.get(name, name)
    for name in ("mean", "std"):
        if facts.get(name) is not None:
            values[name] = _numbers(name, 3, facts)
    return values


def _side(size: object, facts: _Facts) -> int:
    """The side of a square, of 3 channels: `[3, 299, 299]`, or 299."""
    sizes: list[Any] = list(size) if isinstance(size, list | tuple) else [3, size, size]
    is_whole = all(isinstance(number, int) and number > 0 for number in sizes)
    if len(sizes) != 3 or not is_whole or sizes[0] != 3 or sizes[1] != sizes[2]:
        raise facts.refuse("input_size", "3 channels of a square")
    return int(sizes[1])


def _numbers(name: str, count: int, facts: _Facts) -> tuple[float, ...]:
    """As many numbers; one stands for all, as with timm. A mean may be 0 or below."""
    given = facts.get(name)
    numbers = list(given) if isinstance(given, list | tuple) else [given]
    numbers = numbers * count if len(numbers) == 1 else numbers
    good = all(
        isinstance(number, int | float) and math.isfinite(number) and (number > 0 or name == "mean")
        for number in numbers
    )
    if len(numbers) != count or not good:
        raise facts.refuse(name, f"{count} numbers" if count > 1 else "a number above 0")
    return tuple(map(float, numbers))


def _names(facts: _Facts, num_classes: int) -> tuple[str, ...]:
    """`label_names`: a list, or an object from class numbers to names."""
    names = facts.get("label_names")
    if isinstance(names, Mapping):
        names = [names.get(str(i), names.get(i)) for i in range(len(names))]
    good = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    if not good or len(names) != num_classes or len(set(names)) != len(names):
        got = f"{len(names)} label_names" if isinstance(names, list | tuple) else "label_names"
        raise CheckpointError(
            facts.what, got, f"{num_classes} different names", "correct them there"
        )
    return tuple(names)
