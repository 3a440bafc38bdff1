"""Keras' graph: what scales pixels is taken over, what would be another network is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import keras_models as keras
import pytest
from imported import refused

from irv2.convert.importing.keras_graph import read_graph

PATH = Path("a.keras")


def images_of(model: keras.Json) -> dict:
    return dict(read_graph(json.loads(json.dumps(model)), PATH).values)


def line(model: keras.Json) -> str:
    return refused(lambda: read_graph(model, PATH))


def sequential(*before: keras.Json, head: list[keras.Json] | None = None) -> keras.Json:
    head = [keras.average(), keras.dense("mine", units=5)] if head is None else head
    return keras.model(keras.images(224), *before, keras.base(), *head, kind="Sequential")


def changed(change: Callable[[keras.Json], object]) -> keras.Json:
    """The published network, each layer of which may have been changed."""
    model = keras.published()
    for layer in model["config"]["layers"]:
        change(layer)
    return model


def test_the_published_network_takes_its_own_size():
    assert images_of(keras.published()) == {"crop": 299}


def test_a_model_in_a_model_is_taken_apart_and_the_outer_size_counts():
    augmentation = keras.model(keras.layer("RandomFlip", "flip"), kind="Sequential")
    head = [keras.average(), keras.layer("Dropout", "dropout"), keras.dense("mine")]
    assert images_of(sequential(augmentation, head=head)) == {"crop": 224}


def test_a_network_of_any_size_does_not_tell_it():
    layers = [keras.images(None), *keras.network_layers(), keras.average(), keras.dense()]
    assert images_of(keras.model(*layers)) == {}


RESCALING = keras.layer("Rescaling", "rescaling", scale=1 / 127.5, offset=-1)
PREPROCESS_INPUT = [
    keras.layer("TrueDivide", "true_divide", 127.5),
    keras.layer("Subtract", "subtract", 1.0),
]


def tensorflow_operator(function: str, y: float) -> keras.Json:
    """As Keras 2 noted an operator of TensorFlow."""
    entry = keras.layer("TFOpLambda", f"tf.{function}", function=function)
    return entry | {"inbound_nodes": [["input_1", 0, 0, {"y": y, "name": None}]]}


@pytest.mark.parametrize(
    ("before", "mean", "std"),
    [
        ([RESCALING], 0.5, 0.5),
        (PREPROCESS_INPUT, 0.5, 0.5),
        ([tensorflow_operator("math.truediv", 127.5), tensorflow_operator("math.subtract", 1.0)],
         0.5, 0.5),
        ([keras.layer("Rescaling", "a", scale=1 / 255, offset=0.0)], 0, 1),
        ([keras.layer("Rescaling", "a", scale=1 / 255, offset=0.0),
          keras.layer("Normalization", "b", mean=[0.4], variance=[0.04])], 0.4, 0.2),
    ],
)  # fmt: skip
def test_layers_that_scale_pixels_become_mean_and_std(before, mean, std):
    values = images_of(sequential(*before))
    assert values["mean"] == pytest.approx((mean,) * 3)
    assert values["std"] == pytest.approx((std,) * 3)


def test_code_before_the_network_is_left_to_the_options():
    values = images_of(sequential(keras.layer("Lambda", "lambda")))
    assert values["mean"] == values["std"] == "the code of layer lambda (Lambda)"


@pytest.mark.parametrize("kind", ["Resizing", "CenterCrop", "Normalization", "Conv2DTranspose"])
def test_other_layers_before_the_network_are_refused_by_name(kind):
    expected = f"a.keras: layer odd ({kind}) before the network; expected Rescaling"
    assert expected in line(sequential(keras.layer(kind, "odd")))


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ([keras.layer("GlobalMaxPooling2D", "pool"), keras.dense()],
         "layer pool (GlobalMaxPooling2D) in the head; expected GlobalAveragePooling2D and one"),
        ([keras.layer("Flatten", "flatten"), keras.dense()], "layer flatten (Flatten) in the head"),
        ([keras.average(), keras.dense(activation="relu", units=9), keras.dense("last")],
         "layer last (Dense) in the head"),
        ([keras.average(), keras.dense(activation="sigmoid", units=1)],
         "has the activation sigmoid; expected one softmax"),
        ([keras.average(), keras.dense(), keras.layer("Softmax", "again")],
         "has the activation softmax; expected one softmax"),
        ([keras.average(), keras.dense(activation={"registered_name": "mine"})],
         'has the activation {"registered_name": "mine"}'),
    ],
)  # fmt: skip
def test_another_head_is_refused_by_name(head, expected):
    assert expected in line(sequential(head=head))


@pytest.mark.parametrize(
    "head",
    [
        [],
        [keras.average()],
        [keras.average(), keras.dense(activation="linear")],
        [keras.average(), keras.dense(activation="linear"), keras.layer("Softmax", "softmax")],
    ],
)
def test_heads_that_rank_classes_alike_are_taken(head):
    assert images_of(sequential(head=head)) == {"crop": 224}


def test_several_inputs_or_outputs_are_refused():
    two = keras.model(keras.images(), keras.images(name="b"), *keras.network_layers())
    assert "several inputs or outputs" in line(two)
    outputs = [["predictions", 0, 0], ["other", 0, 0]]
    layers = [keras.images(), *keras.network_layers(), keras.average(), keras.dense()]
    assert "several inputs or outputs" in line(keras.model(*layers, output_layers=outputs))
    assert images_of(keras.model(*layers, output_layers=outputs[0])) == {"crop": 299}


@pytest.mark.parametrize("shape", [[None, 299, 331, 3], [None, 299, 299, 1], [None, 3, 299, 299]])
def test_images_that_are_no_squares_of_three_channels_are_refused(shape):
    model = changed(lambda layer: None)
    model["config"]["layers"][0]["config"]["batch_shape"] = shape
    assert "expected squares of 3 channels" in line(model)


@pytest.mark.parametrize(
    ("kind", "name", "setting", "value", "expected"),
    [
        ("Activation", "activation_7", "activation", "swish",
         "1 Activation swish in place of 1 Activation relu"),
        ("Conv2D", "conv2d_72", "strides", [1, 1], "strides 1x1, valid in place of 1 Conv2D"),
        ("Conv2D", "conv2d_9", "dilation_rate", [2, 2], "strides 1x1, same dilated in place"),
        ("MaxPooling2D", "max_pooling2d_1", "padding", "same", "strides 2x2, same in place of"),
        ("CustomScaleLayer", "block17_3", "scale", 0.3, "1 scale 0.3 in place of 1 scale 0.1"),
        ("BatchNormalization", "batch_normalization_5", "epsilon", 1e-5,
         "layer batch_normalization_5 (BatchNormalization) has epsilon 1e-05; expected 0.001"),
    ],
)  # fmt: skip
def test_settings_that_the_weights_do_not_tell_are_checked(kind, name, setting, value, expected):
    def change(layer: keras.Json) -> None:
        if layer["config"]["name"] == name:
            assert layer["class_name"] == kind
            layer["config"][setting] = value

    assert expected in line(changed(change))
