"""A network whose batch norm and scales are folded gives what it gave before."""

import torch

from irv2.model.build import build
from irv2.model.fold import fold
from irv2.network_config import SlimConfig


@torch.inference_mode()
def test_folding_batch_norm_and_scales_keeps_the_logits():
    torch.manual_seed(0)
    model = build(SlimConfig(num_classes=3, blocks=(1, 2, 2), width=0.125))
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.5, 0.5)
            layer.running_var.uniform_(0.5, 2)
    model.eval()
    images = torch.randn(2, 3, 75, 75)
    expected = model(images)
    # Folding reorders float32 products: a few units in the last place through about 40 layers.
    torch.testing.assert_close(fold(model)(images), expected, rtol=1e-4, atol=1e-5)
