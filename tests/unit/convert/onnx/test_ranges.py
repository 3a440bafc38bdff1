"""Ranges from a histogram, against those computed from the values themselves."""

import math

import numpy as np
import pytest

from irv2.convert.onnx.ranges import METHODS, PERCENTAGE, Histogram, Range, estimate
from irv2.types import FloatArray


def estimates(values: FloatArray, batches: int = 7) -> dict[str, Range]:
    histogram = Histogram()
    for batch in np.array_split(values, batches):
        histogram.add(batch)
    return dict(estimate(histogram, float(values.min()), float(values.max())))


def after_relu() -> FloatArray:
    """Zeros, values up to 6, and one in a million that is far beyond the others."""
    values = np.random.default_rng(0).normal(1.5, 1, 1_000_000).clip(0).astype(np.float32)
    values[0] = 30
    return values


def on_both_sides(size: int = 200_000) -> FloatArray:
    """Long tails, and one value far beyond."""
    rng = np.random.default_rng(1)
    values = rng.laplace(0.3, 1, size).astype(np.float32)
    values[0] = -60
    return values


def squared_error(values: FloatArray, low: float, high: float) -> float:
    """As QuantizeLinear and DequantizeLinear make it, with a zero point in uint8."""
    low, high = min(low, 0), max(high, 0)
    scale = (high - low) / 255
    zero = np.round(-low / scale)
    levels = np.clip(np.round(values / scale) + zero, 0, 255)
    return float(np.mean(((levels - zero) * scale - values.astype(np.float64)) ** 2))


@pytest.mark.parametrize("make", [after_relu, on_both_sides])
def test_percentile_holds_its_share_of_the_values(make):
    values = make()
    tail = (1 - PERCENTAGE / 100) / 2
    wanted = np.quantile(values, [tail, 1 - tail])
    bin_width = 2 * np.abs(values).max() / 8192  # at most
    np.testing.assert_allclose(estimates(values)["percentile"], wanted, atol=2 * bin_width)


@pytest.mark.parametrize("make", [after_relu, on_both_sides])
def test_mse_finds_the_least_error_of_any_cut(make):
    values = make()
    low, high = estimates(values)["mse"]
    limits = np.abs(values).max() * np.geomspace(1 / 16, 1, 100)
    errors = [
        squared_error(values, max(values.min(), -limit), min(values.max(), limit))
        for limit in limits
    ]
    assert squared_error(values, low, high) < 1.02 * min(errors)
    assert squared_error(values, low, high) < 0.8 * squared_error(
        values, values.min(), values.max()
    )


def test_every_method_keeps_the_range_of_even_values():
    """255 levels hold them best if they reach the ends."""
    values = np.linspace(0, 6, 100_000, dtype=np.float32)
    for method, found in estimates(values).items():
        np.testing.assert_allclose(found, (0, 6), atol=1e-3, err_msg=method)


def test_neither_order_nor_batches_change_the_histogram():
    values = on_both_sides(5000)
    one, shuffled = Histogram(), Histogram()
    one.add(values)
    direct, _ = np.histogram(values.astype(np.float64), one.edges)
    for batch in np.random.default_rng(2).permutation(values).reshape(-1, 10):
        shuffled.add(batch)
    assert one.exponent == shuffled.exponent == 6
    np.testing.assert_array_equal(one.counts, direct)
    np.testing.assert_array_equal(one.counts, shuffled.counts)


@pytest.mark.parametrize("value", [0.0, -1.5, 1e-30, 3e38])
def test_one_value_is_its_own_range(value):
    values = np.full(1000, value, np.float32)
    for found in estimates(values).values():
        np.testing.assert_allclose(found, float(values[0]), rtol=1e-3, atol=1e-30)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_stays_in_every_range(value):
    """So that the export names it."""
    values = np.array([1, 2, value], np.float32)
    found = estimates(values, batches=1)
    assert found.keys() == set(METHODS)
    assert not any(np.isfinite(limits).all() for limits in found.values())
