"""The graph that Keras keeps beside its weights: what is around the network, and inside it.

Layers before the network may scale pixels, layers after it are its head. Both have to be what our
network and its preprocessing do too; any other is refused by its name, since its weights would fit
all the same. Layers that do nothing outside training are passed over.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from irv2.convert.importing.statements import Statement
from irv2.errors import CheckpointError
from irv2.system.text import shortened

TRAINING_ONLY = {
    "InputLayer",
    *("Dropout", "SpatialDropout2D", "AlphaDropout", "GaussianDropout", "GaussianNoise"),
    *("RandomFlip", "RandomRotation", "RandomZoom", "RandomTranslation", "RandomShear"),
    *("RandomContrast", "RandomBrightness", "RandomHue", "RandomSaturation", "RandomColorJitter"),
}
# What weights do not tell of the network's layers, and how often each occurs.
PLAIN_LAYERS = Counter(
    {
        ("Conv2D", "strides 1x1, same"): 235,
        ("Conv2D", "strides 1x1, valid"): 3,
        ("Conv2D", "strides 2x2, valid"): 6,
        ("Activation", "relu"): 243,
        ("MaxPooling2D", "3x3, strides 2x2, valid"): 4,
        ("AveragePooling2D", "3x3, strides 1x1, same"): 1,
        ("scale", "0.17"): 10,
        ("scale", "0.1"): 20,
        ("scale", "0.2"): 9,
        ("scale", "1"): 1,
    }
)
EPSILON = 1e-3
# Keras' operators on pixels, in the names of Keras 3 and of TensorFlow: factor and addend.
OPERATORS: dict[str, Callable[[float], tuple[float, float]]] = {
    "TrueDivide": lambda x: (1 / x, 0.0),
    "Divide": lambda x: (1 / x, 0.0),
    "math.truediv": lambda x: (1 / x, 0.0),
    "Multiply": lambda x: (x, 0.0),
    "math.multiply": lambda x: (x, 0.0),
    "Subtract": lambda x: (1.0, -x),
    "math.subtract": lambda x: (1.0, -x),
    "Add": lambda x: (1.0, x),
    "math.add": lambda x: (1.0, x),
}
EXPECTED = "Keras' InceptionResNetV2 between an input of pixels and one Dense layer"
HEAD = ("GlobalAveragePooling2D", "Dense")


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of the graph; nested models are taken apart."""

    kind: str
    name: str
    config: Mapping[str, Any]
    nodes: Any  # how it is called

    def __str__(self) -> str:
        return f"layer {self.name} ({self.kind})"


def read_graph(model: Any, path: Path) -> Statement:  # noqa: ANN401 (JSON)
    """What a model's configuration says of its images; raises for another network than ours.

    Raises CheckpointError about `path`, or any error where it is no configuration of Keras.
    """
    layers = list(_flat(model, path))
    convolutions = [i for i, layer in enumerate(layers) if layer.kind == "Conv2D"]
    if not convolutions:
        raise CheckpointError(path, "a graph without convolutions", EXPECTED)
    first, end = convolutions[0], convolutions[-1] + 3  # its batch norm and its activation
    _check_network(layers[first:end], path)
    _check_head(layers[end:], path)
    return Statement("the file's graph", _images(layers[:first], path))


def _flat(model: Mapping[str, Any], path: Path) -> Iterator[Layer]:
    """The layers in the order of the graph; raises for more than one input or output."""
    config = model["config"]
    outputs = config.get("output_layers", [])
    is_one = not isinstance(outputs, Mapping) and (
        len(outputs) < 2 or not isinstance(outputs[0], list)
    )
    inputs = [entry for entry in config["layers"] if entry["class_name"] == "InputLayer"]
    if not is_one or len(inputs) > 1:
        raise CheckpointError(path, "a graph of several inputs or outputs", EXPECTED)
    for entry in config["layers"]:
        own = entry["config"]
        if "layers" in own:
            yield from _flat(entry, path)
        else:
            yield Layer(entry["class_name"], own["name"], own, entry.get("inbound_nodes"))


def _check_network(layers: list[Layer], path: Path) -> None:
    """Refuse other pools, activations, residual scales or epsilons than the network's."""
    plain: Counter[tuple[str, str]] = Counter()
    for layer in layers:
        if layer.kind == "BatchNormalization":
            if not math.isclose(layer.config["epsilon"], EPSILON, rel_tol=1e-6):
                epsilon = layer.config["epsilon"]
                raise CheckpointError(path, f"{layer} has epsilon {epsilon}", f"{EPSILON}")
        elif layer.kind == "Activation":
            plain["Activation", str(layer.config["activation"])] += 1
        elif layer.kind in ("MaxPooling2D", "AveragePooling2D"):
            size = "x".join(map(str, layer.config["pool_size"]))
            plain[layer.kind, f"{size}, {_strides(layer.config)}"] += 1
        elif layer.kind in ("CustomScaleLayer", "Lambda"):
            arguments = layer.config.get("arguments") or layer.config
            plain["scale", f"{arguments.get('scale', 'unknown'):g}"] += 1
        elif layer.kind == "Conv2D":
            plain[layer.kind, _strides(layer.config)] += 1
        elif layer.kind not in ("Concatenate", "Add", *TRAINING_ONLY):
            raise CheckpointError(path, f"{layer} within the network", EXPECTED)
    if plain != PLAIN_LAYERS:
        found = [f"{n} {' '.join(what)}" for what, n in (plain - PLAIN_LAYERS).items()]
        lacks = [f"{n} {' '.join(what)}" for what, n in (PLAIN_LAYERS - plain).items()]
        raise CheckpointError(
            path,
            f"another network: {shortened(found) or 'nothing'} in place of "
            f"{shortened(lacks) or 'nothing'}",
            EXPECTED,
        )


def _strides(config: Mapping[str, Any]) -> str:
    strides = "x".join(map(str, config["strides"]))
    dilation = max(config.get("dilation_rate", [1]))
    return f"strides {strides}, {config['padding']}" + (" dilated" if dilation > 1 else "")


def _images(layers: list[Layer], path: Path) -> dict[str, Any]:
    """Size, mean and std of the images, from the layers before the network."""
    values: dict[str, Any] = {}
    factor, addend, scaled = [1.0] * 3, [0.0] * 3, False
    for layer in layers:
        if "crop" not in values and (side := _side(layer, path)):
            values["crop"] = side
        if layer.kind in TRAINING_ONLY:
            continue
        scaled = True
        if layer.kind == "Lambda":  # Python code, which is not run
            values["mean"] = values["std"] = f"the code of {layer}"
            continue
        by, plus = _affine(layer, path)
        factor = [f * b for f, b in zip(factor, by, strict=True)]
        addend = [a * b + p for a, b, p in zip(addend, by, plus, strict=True)]
    if scaled and "mean" not in values:  # factor * pixel + addend = (pixel / 255 - mean) / std
        values["mean"] = tuple(round(-a / f / 255, 9) for f, a in zip(factor, addend, strict=True))
        values["std"] = tuple(round(1 / f / 255, 9) for f in factor)
    return values


def _side(layer: Layer, path: Path) -> int | None:
    """The side of the square that an input takes, None where it takes any."""
    shape = layer.config.get("batch_shape") or layer.config.get("batch_input_shape")
    if not shape:
        return None
    _, height, width, channels = shape
    if height != width or channels != 3:
        sizes = "x".join(map(str, shape[1:]))
        raise CheckpointError(path, f"{layer} takes {sizes}", "squares of 3 channels, the last")
    return int(height) if height else None


def _affine(layer: Layer, path: Path) -> tuple[list[float], list[float]]:
    """What a layer multiplies each channel by, and what it adds then."""
    config = layer.config
    if layer.kind == "Rescaling":
        return _three(config["scale"]), _three(config["offset"])
    if layer.kind == "Normalization" and config.get("mean") is not None:
        inverse = [1 / math.sqrt(variance) for variance in _three(config["variance"])]
        mean = _three(config["mean"])
        return inverse, [-m * i for m, i in zip(mean, inverse, strict=True)]
    operator = OPERATORS.get(config.get("function", layer.kind))
    constants = list(_constants(layer.nodes))
    if operator and len(constants) == 1:
        by, plus = operator(constants[0])
        return [by] * 3, [plus] * 3
    raise CheckpointError(
        path,
        f"{layer} before the network",
        "Rescaling, or layers for training alone",
        "take it out of the model, save it again and say by --mean and --std what it did",
    )


def _three(value: Any) -> list[float]:  # noqa: ANN401 (JSON: a number or nested lists of them)
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    numbers = [float(number) for number in value] if isinstance(value, list) else [float(value)] * 3
    if len(numbers) != 3:
        raise ValueError(f"{len(numbers)} values for 3 channels")
    return numbers


def _constants(nodes: Any) -> Iterator[float]:  # noqa: ANN401 (JSON)
    """The numbers that a layer is called with beside a tensor, as 127.5 or {"y": 127.5}."""
    if not isinstance(nodes, list) or len(nodes) != 1:
        return
    node = nodes[0]
    if isinstance(node, Mapping):  # Keras 3; a tensor on the left
        for argument in node["args"][1:]:
            if isinstance(argument, int | float):
                yield float(argument)
    elif len(node) == 4 and isinstance(node[3].get("y"), int | float):  # TensorFlow's Keras 2
        yield float(node[3]["y"])
    elif len(node) == 1 and isinstance(node[0][3].get("y"), int | float):
        yield float(node[0][3]["y"])


def _check_head(layers: list[Layer], path: Path) -> None:
    """Refuse any other head than ours; none at all is one too."""
    rest = [layer for layer in layers if layer.kind not in TRAINING_ONLY]
    good = ["softmax", "linear", None]
    if rest and _is_softmax(rest[-1]):
        rest.pop()
        good.remove("softmax")  # twice is another function
    for expected, layer in zip_longest(HEAD, rest[: len(HEAD) + 1]):
        if layer and layer.kind != expected:
            raise CheckpointError(
                path,
                f"{layer} in the head",
                " and one ".join(HEAD),
                "train such a head on the average of the features",
            )
    if len(rest) == len(HEAD) and (activation := rest[-1].config["activation"]) not in good:
        text = activation if isinstance(activation, str) else json.dumps(activation)
        raise CheckpointError(
            path,
            f"{rest[-1]} has the activation {text}",
            "one softmax",
            "train it with an output per class and a softmax over them",
        )


def _is_softmax(layer: Layer) -> bool:
    is_activation = layer.kind == "Activation" and layer.config["activation"] == "softmax"
    return is_activation or layer.kind == "Softmax"
