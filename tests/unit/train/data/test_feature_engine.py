"""The engine of a feature pass: the fastest one that gives what the network gives in float32."""

import logging

import pytest
import torch
from torch import Tensor

from irv2.errors import EngineError
from irv2.model.build import Network, build
from irv2.model.slim import InceptionResNetV2Slim
from irv2.network_config import ModelConfig, SlimConfig
from irv2.system.machine import cpu_has_bfloat16
from irv2.train.data.feature_engine import WORTH_OPENVINO, FeatureEngine, require_right

PRECISIONS = ["fp32", *["bf16"] * cpu_has_bfloat16()]


@pytest.fixture(params=[ModelConfig, SlimConfig], ids=["v2", "slim"])
def network(request) -> Network:
    return small(request.param)


def small(config: type) -> Network:
    torch.manual_seed(0)
    return build(config(blocks=(1, 1, 1), width=0.03, num_classes=2)).eval()


def images(num: int = 5) -> Tensor:
    pixels = torch.randn(num, 3, 75, 75, generator=torch.Generator().manual_seed(1))
    return pixels.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("num_images", "backend"), [(WORTH_OPENVINO - 1, "torch-cpu"), (WORTH_OPENVINO, "openvino-cpu")]
)
def test_features_are_those_of_the_network_in_float32(
    network, precision, num_images, backend, caplog
):
    caplog.set_level(logging.INFO)
    engine = FeatureEngine(network, precision, num_images)
    with torch.inference_mode():
        for batch in (images(5), images(32), images(1)):
            found, exact = engine(batch), network.features(batch)
            assert found.dtype == torch.float32
            assert found.shape == exact.shape
            # bfloat16 has 8 bits, and rounds in some 40 layers.
            assert (found - exact).norm() / exact.norm() < (1e-5 if precision == "fp32" else 0.03)
    assert f"features: in {precision} on {backend}" in caplog.text  # what OpenVINO would silence


def test_an_engine_that_is_off_is_refused():
    network = small(SlimConfig)

    def right(batch: Tensor) -> Tensor:
        return network.features(batch)

    def off(batch: Tensor) -> Tensor:
        return 1.01 * network.features(batch)

    require_right(right, right, network, images())
    require_right(off, off, network, images())  # as far as torch is
    with pytest.raises(EngineError, match=r"5 images are 0\.01 of their size off; .* most 0\.0001"):
        require_right(off, right, network, images())
    with pytest.raises(EngineError, match="nan"):
        require_right(lambda batch: right(batch) * torch.nan, right, network, images())


class _Unusual(InceptionResNetV2Slim):
    """A network with something that OpenVINO does not know."""

    def features(self, images_nchw: Tensor) -> Tensor:
        return super().features(images_nchw) + torch.linalg.svdvals(images_nchw).sum()


def test_torch_takes_over_what_openvino_can_t_run_and_says_why(caplog):
    network = _Unusual(SlimConfig(blocks=(1, 1, 1), width=0.03, num_classes=2)).eval()
    features = FeatureEngine(network, "fp32", WORTH_OPENVINO)(images())
    assert "OpenVINO can't load it" in caplog.text
    assert "torch computes them instead" in caplog.text
    with torch.inference_mode():
        torch.testing.assert_close(features, network.features(images()), rtol=1e-4, atol=1e-5)
