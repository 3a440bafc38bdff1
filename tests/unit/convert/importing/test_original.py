"""Modules of Torch7 trees: what each is read as, and what the original's network has none of."""

import numpy as np
import pytest
import torch
from imported import imported, refused
from torch7_writer import Object, Storage, Tensor, save, sequence

from irv2.convert.importing.original import read_original

STEM_2 = {
    "nInputPlane": 32,
    "nOutputPlane": 64,
    "kH": 3,
    "kW": 3,
    "dH": 1,
    "dW": 1,
    "padH": 1,
    "padW": 1,
}
MATRIX = (np.arange(64 * 32 * 9, dtype=np.float32) % 2048).reshape(64, -1)  # exact as halves
POOL = {"kH": 3, "kW": 3, "dH": 2, "dW": 2, "padH": 0, "padW": 0, "ceil_mode": False}
FOUR = np.array([1, 2, 4, 8], np.float32)
BATCH_NORM = {
    "eps": 1e-5,
    **{field: Tensor(FOUR) for field in ("weight", "bias", "running_mean", "running_var")},
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.t7"


def tree(*modules: Object) -> Object:
    return Object("nn.Sequential", {"modules": sequence(*modules)})


def convolution(kind: str = "cudnn.SpatialConvolution", **changes: object) -> Object:
    """The network's stem.2, with some fields changed, or dropped where None."""
    fields = STEM_2 | {"weight": Tensor(MATRIX.reshape(64, 32, 3, 3))} | changes
    return Object(kind, {name: value for name, value in fields.items() if value is not None})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"modelFile": "model_90.t7"}, "import model_90.t7"),
        ({"learningRate": 0.045}, "without a network"),
        (Object("nn.LookupTable"), "is a nn.LookupTable, which the network does not have"),
        (Object("nn.MulConstant", {"constant_scalar": 0.2}), "constant_scalar 0.2; expected 0.1"),
        (Object("nn.SpatialMaxPooling", POOL | {"kH": 2}), "has kH 2.0; expected 3"),
        (Object("nn.SpatialMaxPooling", POOL | {"padW": 1}), "has padW 1.0; expected 0"),
        (Object("nn.SpatialMaxPooling", POOL | {"ceil_mode": True}), "has ceil_mode True"),
        (Object("cudnn.SpatialAveragePooling", {"kH": 7, "kW": 7}), "has kH 7.0; expected 8"),
        (Object("nn.JoinTable", {"dimension": 3}), "model (JoinTable) does not join channels"),
        (Object("nn.JoinTable", {"dimension": 2, "nInputDims": 3}), "does not join channels"),
        (Object("nn.JoinTable"), "does not join channels"),
        (Object("cudnn.SpatialConvolution"), "does not say what it computes"),
        (convolution(kH=-3), "does not say what it computes"),
        (convolution(nOutputPlane=-64), "does not say what it computes"),
        (convolution(dW=0), "does not say what it computes"),
        (convolution(padH=-1), "does not say what it computes"),
        (convolution(kH=2.5), "does not say what it computes"),
        (convolution(kH=1e300, weight=None), "has no weight"),
        (convolution(groups=2), "model is a grouped convolution"),
        (Object("nn.SpatialBatchNormalization"), "has no running_mean"),
        (
            Object("nn.SpatialBatchNormalization", BATCH_NORM | {"eps": 1e-3}),
            "has eps 0.001; expected 1e-5",
        ),
        (
            Object(
                "nn.SpatialBatchNormalization", {k: v for k, v in BATCH_NORM.items() if k != "eps"}
            ),
            "has eps None",
        ),
        (Object("nn.Linear"), "has no weight"),
        (
            Object("nn.Linear", {"weight": Tensor(MATRIX.reshape(64, 32, 9))}),
            "model.weight has 3 dimensions; expected 2",
        ),
        (Object("nn.Sequential"), "662 missing"),
    ],
)
def test_what_the_network_does_not_have_is_named(path, value, expected):
    assert expected in refused(lambda: imported(save(path, value)))


@pytest.mark.parametrize(
    "module",
    [
        Object("nn.Identity"),
        Object("nn.Reshape"),
        Object("nn.View"),
        Object("nn.Dropout"),
        Object("nn.JoinTable", {"dimension": 2}),
        Object("nn.JoinTable", {"dimension": 2, "nInputDims": 4}),
        Object("nn.JoinTable", {"dimension": 1, "nInputDims": 3}),
        Object("nn.JoinTable", {"dimension": -3}),
        Object("cudnn.SpatialMaxPooling", POOL),
        Object("nn.SpatialMaxPooling", {"kH": 3, "kW": 3, "dH": 2, "dW": 2}),  # of 2014
        Object("cudnn.SpatialAveragePooling", {"kH": 8, "kW": 8}),
    ],
    ids=lambda module: f"{module.type_name} {module.fields}",
)
def test_modules_without_weights_are_read_over(path, module):
    weights = read_original(save(path, tree(module, convolution())))
    assert weights.names == {"stem.2.0.weight": "model.2.weight"}


@pytest.mark.parametrize(
    "module",
    [
        convolution(),
        convolution(groups=1),
        convolution("nn.SpatialConvolutionMM", weight=Tensor(MATRIX)),
        convolution(padH=None, padW=None, padding=1),  # of 2014: both sides'
        convolution(bias=Tensor(np.zeros(64, np.float32))),  # as older cudnn kept it
        convolution(weight=Tensor(MATRIX.reshape(64, 32, 3, 3).astype(np.float64), "Double")),
        convolution(weight=Tensor(MATRIX.reshape(64, 32, 3, 3).astype(np.float16), "CudaHalf")),
    ],
)
def test_a_convolution_is_read_however_it_was_kept(path, module):
    weights = read_original(save(path, tree(module)))
    assert weights.names == {"stem.2.0.weight": "model.1.weight"}
    assert list(weights.tensors) == ["model.1.weight"]
    weight = weights.tensors["model.1.weight"]
    assert weight.dtype == torch.float32
    torch.testing.assert_close(
        weight, torch.from_numpy(MATRIX.reshape(64, 32, 3, 3)), rtol=0, atol=0
    )


def test_a_convolution_without_padding_is_another(path):
    weights = read_original(save(path, tree(convolution(padH=None, padW=None))))
    assert weights.names == {}


def test_the_bias_of_a_convolution_is_left_over_unless_it_is_zero(path):
    biased = convolution(bias=Tensor(np.eye(1, 64, dtype=np.float32)[0]))
    assert "model.1.bias" in read_original(save(path, tree(biased))).tensors
    assert "left over: model.1.bias" in refused(lambda: imported(path))


def test_a_value_beyond_float32_is_refused_with_its_name_by_the_finite_check(path):
    weight = Tensor(np.full((64, 32, 3, 3), 1e300), "Double")
    weights = read_original(save(path, tree(convolution(weight=weight))))
    assert weights.tensors["model.1.weight"].isinf().all()


def test_layers_that_share_their_values_are_refused_before_they_are_copied(path):
    """A file of 4 MB that names one layer 200 times must not take 800 MB."""
    values = np.zeros((1000, 1000), np.float32)
    linear = Object("nn.Linear", {"weight": Tensor(values), "bias": Tensor(FOUR)})
    line = refused(lambda: imported(save(path, tree(linear))))
    assert "share values" not in line
    storage = Storage(values)
    views = [
        Object("nn.Linear", {"weight": Tensor(values, storage=storage), "bias": Tensor(FOUR)})
        for _ in range(100)
    ]
    for layers in ([linear] * 200, views):
        assert "its layers share values" in refused(
            lambda layers=layers: imported(save(path, tree(*layers)))
        )
        assert path.stat().st_size < 4_100_000


def test_a_tree_that_contains_itself_is_refused(path):
    cycle = Object("nn.Sequential")
    cycle.fields["modules"] = sequence(cycle, cycle)
    assert "modules without end" in refused(lambda: imported(save(path, cycle)))
