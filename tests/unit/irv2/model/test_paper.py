"""The network against the published table, which is written out here as data."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from irv2.model.paper import (
    ConvBN,
    InceptionResNetA,
    InceptionResNetV2,
    ModelConfig,
    Normalized,
    inception_resnet_v2,
)
from irv2.model.summary import summarize, summary_table

# Each convolution in forward order: (in, out, kernel height, kernel width, stride, padding h, w).
STEM = [
    (3, 32, 3, 3, 2, 0, 0),
    (32, 32, 3, 3, 1, 0, 0),
    (32, 64, 3, 3, 1, 1, 1),
    (64, 96, 3, 3, 2, 0, 0),
    (160, 64, 1, 1, 1, 0, 0),
    (64, 96, 3, 3, 1, 0, 0),
    (160, 64, 1, 1, 1, 0, 0),
    (64, 64, 1, 7, 1, 0, 3),  # wide before tall
    (64, 64, 7, 1, 1, 3, 0),
    (64, 96, 3, 3, 1, 0, 0),
    (192, 192, 3, 3, 2, 0, 0),
]
BLOCK_A = [
    (384, 32, 1, 1, 1, 0, 0),
    (384, 32, 1, 1, 1, 0, 0),
    (32, 32, 3, 3, 1, 1, 1),
    (384, 32, 1, 1, 1, 0, 0),
    (32, 48, 3, 3, 1, 1, 1),
    (48, 64, 3, 3, 1, 1, 1),
    (128, 384, 1, 1, 1, 0, 0),
]
REDUCTION_A = [
    (384, 384, 3, 3, 2, 0, 0),
    (384, 256, 1, 1, 1, 0, 0),
    (256, 256, 3, 3, 1, 1, 1),
    (256, 384, 3, 3, 2, 0, 0),
]
BLOCK_B = [
    (1152, 192, 1, 1, 1, 0, 0),
    (1152, 128, 1, 1, 1, 0, 0),
    (128, 160, 7, 1, 1, 3, 0),  # tall before wide
    (160, 192, 1, 7, 1, 0, 3),
    (384, 1152, 1, 1, 1, 0, 0),
]
REDUCTION_B = [
    (1152, 256, 1, 1, 1, 0, 0),
    (256, 384, 3, 3, 2, 0, 0),
    (1152, 256, 1, 1, 1, 0, 0),
    (256, 256, 3, 3, 2, 0, 0),
    (1152, 256, 1, 1, 1, 0, 0),
    (256, 256, 3, 3, 1, 1, 1),
    (256, 256, 3, 3, 2, 0, 0),
]
BLOCK_C = [
    (2048, 192, 1, 1, 1, 0, 0),
    (2048, 192, 1, 1, 1, 0, 0),
    (192, 224, 3, 1, 1, 1, 0),  # tall before wide
    (224, 256, 1, 3, 1, 0, 1),
    (448, 2048, 1, 1, 1, 0, 0),
]
# name in the summary -> (output at 299, convolutions)
PUBLISHED = {
    "stem": ((384, 35, 35), STEM),
    "blocks_a x5": ((384, 35, 35), 5 * BLOCK_A),
    "reduction_a": ((1152, 17, 17), REDUCTION_A),
    "blocks_b x10": ((1152, 17, 17), 10 * BLOCK_B),
    "reduction_b": ((2048, 8, 8), REDUCTION_B),
    "blocks_c x5": ((2048, 8, 8), 5 * BLOCK_C),
    "classifier": ((1000,), []),
}
LINEAR_LAYERS = 20  # the last 1x1 of each residual block


@pytest.fixture(scope="module")
def published() -> InceptionResNetV2:
    """The network at full size, with drawn initial values."""
    torch.manual_seed(0)
    return inception_resnet_v2()


@pytest.fixture(scope="module")
def convolutions(published: InceptionResNetV2) -> list[nn.Conv2d]:
    return [layer for layer in published.modules() if isinstance(layer, nn.Conv2d)]


def narrow(**changes) -> InceptionResNetV2:
    config = {"num_classes": 10, "width": 0.25, "blocks": (1, 2, 1), **changes}
    return inception_resnet_v2(**config)


def test_the_table_has_the_published_number_of_convolutions():
    assert sum(len(layers) for _, layers in PUBLISHED.values()) == 132


def test_every_convolution_has_the_published_geometry_in_forward_order(published):
    with torch.device("meta"):
        network = InceptionResNetV2(published.config)
    met: list[nn.Conv2d] = []
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda layer, *_: met.append(layer))
    network.eval()(torch.zeros(1, 3, 299, 299, device="meta"))
    found = [(c.in_channels, c.out_channels, *c.kernel_size, c.stride[0], *c.padding) for c in met]
    assert found == [conv for _, layers in PUBLISHED.values() for conv in layers]
    assert all(c.stride[0] == c.stride[1] and c.groups == 1 and c.bias is None for c in met)
    assert {c.dilation for c in met} == {(1, 1)}


def test_every_block_has_the_published_output_and_number_of_convolutions(published):
    rows = summarize(published.config, 299)
    found = {row.name: (row.shape, row.num_convolutions) for row in rows}
    assert found == {name: (shape, len(convs)) for name, (shape, convs) in PUBLISHED.items()}
    assert [row.name for row in rows] == list(PUBLISHED)


def test_pooling_is_3x3_by_2_without_padding_once_in_each_of_the_four_shrinking_steps(published):
    pools = [layer for layer in published.modules() if isinstance(layer, nn.MaxPool2d)]
    assert [(p.kernel_size, p.stride, p.padding, p.ceil_mode) for p in pools] == 4 * [
        (3, 2, 0, False)
    ]


def test_parameters_and_operations_are_the_published_ones(published):
    rows = summarize(published.config, 299)
    assert sum(p.numel() for p in published.parameters()) == 31_574_440
    assert sum(row.num_parameters for row in rows) == 31_574_440
    assert round(sum(row.flop for row in rows) / 1e9, 1) == 18.4
    table = summary_table(rows)
    assert "31,574,440" in table
    assert "384 x 35 x 35" in table


def test_operations_are_twice_the_multiply_adds_counted_from_the_table(published):
    # (299 - 3) / 2 + 1 = 149 rows and columns leave the first convolution, and so on.
    stem_sides = [149, 147, 147, 73, 73, 71, 73, 73, 73, 71, 35]
    expected = sum(
        2 * cin * cout * kh * kw * side**2
        for (cin, cout, kh, kw, *_), side in zip(STEM, stem_sides, strict=True)
    )
    assert summarize(published.config, 299)[0].flop == expected


def test_every_convolution_is_followed_by_batch_norm_and_relu_except_the_last_of_a_residual(
    published,
):
    units = [m for m in published.modules() if isinstance(m, ConvBN)]
    assert len(units) == 132
    for unit in units:
        norm = unit[1]
        assert isinstance(norm, nn.BatchNorm2d)
        assert (norm.eps, norm.momentum, norm.num_features) == (1e-5, 0.1, unit[0].out_channels)
    linear = [unit for unit in units if len(unit) == 2]
    projections = [m.project for m in published.modules() if hasattr(m, "project")]
    assert set(linear) == set(projections)
    assert len(linear) == LINEAR_LAYERS
    assert all(isinstance(unit[2], nn.ReLU) for unit in units if len(unit) == 3)


def test_convolutions_start_normal_with_the_published_deviation(convolutions):
    for conv in convolutions:
        weight = conv.weight.detach()
        expected = math.sqrt(2 / (conv.kernel_size[0] * conv.kernel_size[1] * conv.out_channels))
        n = weight.numel()
        # The deviation of n normal draws scatters by 1 / sqrt(2 n), their mean by 1 / sqrt(n):
        # five of these, so that 132 layers pass by chance more than 9999 times in 10,000.
        assert weight.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * n))
        assert abs(weight.mean().item()) < 5 * expected / math.sqrt(n)
    first = torch.cat([(c.weight / c.weight.std()).flatten() for c in convolutions])
    # A normal distribution, not a uniform or truncated one: 0.27 % lie beyond three deviations
    # (31 million draws, which scatter by 0.00001).
    assert (first.abs() > 3).float().mean().item() == pytest.approx(0.0027, abs=1e-4)


def test_batch_norm_starts_at_one_and_zero_and_the_classifier_uniform_within_its_bound(published):
    norms = [layer for layer in published.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert all(bool((n.weight == 1).all()) and bool((n.bias == 0).all()) for n in norms)
    assert all(bool((n.running_mean == 0).all() & (n.running_var == 1).all()) for n in norms)
    weight, bound = published.classifier.weight.detach(), 1 / math.sqrt(2048)
    assert bool((published.classifier.bias == 0).all())
    assert 0.999 * bound < weight.abs().max().item() <= bound
    # Uniform on +-b has deviation b / sqrt(3); 2 million draws scatter by 0.05 %.
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=5e-3)


def test_initial_values_follow_the_seed():
    def first_weight(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in narrow().parameters()])

    assert torch.equal(first_weight(1), first_weight(1))
    assert not torch.equal(first_weight(1), first_weight(2))


def test_a_block_adds_a_tenth_of_its_linear_projection_to_the_identity_before_relu():
    torch.manual_seed(0)
    block = InceptionResNetA(384, ModelConfig()).eval()
    x = torch.randn(1, 384, 5, 5)  # negative values: an early ReLU would show
    with torch.no_grad():
        conv, norm = block.project
        joined = torch.cat([branch(x) for branch in block.branches.branches], dim=1)
        assert joined.shape == (1, 128, 5, 5)
        residual = norm(conv(joined))
        assert bool((residual < 0).any())  # nothing has cut it
        expected = (x + 0.1 * residual).clamp(min=0)
        assert torch.equal(block(x), expected)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_the_residual_scale_is_a_parameter(scale):
    block = InceptionResNetA(384, ModelConfig(residual_scale=scale)).eval()
    x = torch.rand(1, 384, 5, 5)
    with torch.no_grad():
        assert torch.equal(block(x), x) == (scale == 0)


def test_a_narrow_network_is_the_same_code_at_75_pixels():
    model = narrow().eval()
    rows = summarize(model.config, 75)
    assert [row.shape for row in rows] == [
        (96, 7, 7), (96, 7, 7), (288, 3, 3), (288, 3, 3), (512, 1, 1), (512, 1, 1), (10,),
    ]  # fmt: skip
    assert [row.num_convolutions for row in rows] == [11, 7, 4, 10, 7, 5, 0]
    with torch.no_grad():
        images = torch.randn(2, 3, 75, 75)
        assert model.features(images).shape == (2, 512)
        assert model(images).shape == (2, 10)


def test_channel_counts_are_multiples_of_eight_at_any_width():
    for width in (0.1, 0.25, 0.33, 0.5, 0.75, 2.0):
        counts = [ModelConfig(width=width).channels(n) for n in (32, 48, 64, 96, 160, 224, 384)]
        assert all(count >= 8 and count % 8 == 0 for count in counts)
    assert ModelConfig().channels(48) == 48


def test_logits_are_the_classifier_of_averaged_features_and_dropout_acts_in_training_only():
    torch.manual_seed(0)
    model = narrow(dropout=0.5).eval()
    images = torch.randn(2, 3, 75, 75)
    with torch.no_grad():
        features = model.features(images)
        expected = features @ model.classifier.weight.T + model.classifier.bias
        # float32 sums of 512 terms, in another order
        torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=1e-5)
        model.dropout.train()
        assert not torch.equal(model(images), model(images))


def test_normalized_equals_normalisation_by_hand():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    images = np.random.default_rng(0).integers(0, 256, (2, 9, 9, 3), dtype=np.uint8)
    network = Normalized(nn.Identity(), mean, std)
    expected = (images / 255 - np.array(mean)) / np.array(std)  # float64, channels last
    found = network(torch.from_numpy(images))
    assert found.dtype == torch.float32
    # Values up to 2.6 in float32, whose spacing there is 2.4e-7; two roundings.
    np.testing.assert_allclose(found.permute(0, 2, 3, 1).numpy(), expected, atol=2e-6)
    assert not [name for name in network.state_dict() if "pixel" in name]
