"""The graph of Keras' InceptionResNetV2 as Keras 3 notes it in `config.json`, cut to what counts.

Layers and their settings are those that Keras 3.15 wrote for `InceptionResNetV2()`: 204 units of
convolution, batch norm and activation, 40 residual convolutions, 5 pools.
"""

import random
from typing import Any

Json = dict[str, Any]
STRIDED = {0, 72, 75, 157, 159, 162}  # units with strides of 2
VALID = {1, 3, 4} | STRIDED  # units that do not pad
POOL = {"pool_size": [3, 3], "strides": [2, 2], "padding": "valid"}
AVERAGE = {"pool_size": [3, 3], "strides": [1, 1], "padding": "same"}
BLOCKS = {"block35": (10, 0.17), "block17": (20, 0.1), "block8": (10, 0.2)}


def layer(kind: str, name: str, *arguments: object, **config: object) -> Json:
    """One layer, called with a tensor and perhaps some constants."""
    node = {"args": [{"class_name": "__keras_tensor__", "config": {}}, *arguments], "kwargs": {}}
    return {"class_name": kind, "config": {"name": name, **config}, "inbound_nodes": [node]}


def network_layers() -> list[Json]:
    """The network between its input and its head, in an order that is not that of the names."""
    first, *middle = [entry for number in range(203) for entry in unit(number)]
    middle += [layer("MaxPooling2D", f"max_pooling2d_{i}", **POOL) for i in range(4)]
    middle.append(layer("AveragePooling2D", "average_pooling2d", **AVERAGE))
    for block, (count, scale) in BLOCKS.items():
        for number in range(1, count + 1):
            is_last = (block, number) == ("block8", 10)
            name = f"{block}_{number}"
            middle.append(convolution(f"{name}_conv"))
            middle.append(layer("CustomScaleLayer", name, scale=1.0 if is_last else scale))
            if not is_last:
                middle.append(layer("Activation", f"{name}_ac", activation="relu"))
    random.Random(0).shuffle(middle)
    return [
        first,
        *middle,
        convolution("conv_7b"),
        layer("BatchNormalization", "conv_7b_bn", epsilon=0.001),
        layer("Activation", "conv_7b_ac", activation="relu"),
    ]


def unit(number: int) -> list[Json]:
    suffix = f"_{number}" if number else ""
    strides, padding = 1 + (number in STRIDED), "valid" if number in VALID else "same"
    return [
        convolution(f"conv2d{suffix}", strides, padding),
        layer("BatchNormalization", f"batch_normalization{suffix}", epsilon=0.001),
        layer("Activation", f"activation{suffix}", activation="relu"),
    ]


def convolution(name: str, strides: int = 1, padding: str = "same") -> Json:
    return layer("Conv2D", name, strides=[strides] * 2, padding=padding, dilation_rate=[1, 1])


def images(size: int | None = 299, name: str = "input_layer") -> Json:
    return layer("InputLayer", name, batch_shape=[None, size, size, 3])


def average() -> Json:
    return layer("GlobalAveragePooling2D", "avg_pool")


def dense(name: str = "predictions", activation: object = "softmax", units: int = 1000) -> Json:
    return layer("Dense", name, units=units, activation=activation)


def model(*layers: Json, kind: str = "Functional", name: str = "functional", **config) -> Json:
    return {"class_name": kind, "config": {"name": name, "layers": list(layers), **config}}


def published() -> Json:
    """`keras.applications.InceptionResNetV2()`."""
    return model(images(), *network_layers(), average(), dense())


def base(size: int | None = None) -> Json:
    """The same without its top, as the layer of another model."""
    return model(images(size, "input_layer_1"), *network_layers(), name="inception_resnet_v2")
