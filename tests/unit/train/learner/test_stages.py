"""Freezing, and the optimiser's groups: what a step may change, and by how much."""

import dataclasses

import pytest
import torch

from irv2.block_names import STAGES
from irv2.model.build import Network, build
from irv2.network_config import ModelConfig, SlimConfig
from irv2.train.data.loader import Batch
from irv2.train.learner.batch_norm import GroupBatchNorm2d
from irv2.train.learner.stages import FIRST_PART, Stages
from irv2.train.learner.step import Computation, Learner
from irv2.train.processes import Processes
from irv2.train.settings import FINETUNE, SETTINGS, Recipe

RECIPE = dataclasses.replace(SETTINGS["2"], batch_size=8, bn_group=4, image_size=75, resize=75)
CONFIGS = [ModelConfig(blocks=(1, 1, 1), width=0.03, num_classes=3),
           SlimConfig(blocks=(1, 1, 1), width=0.03, num_classes=3)]  # fmt: skip


def recipe_for(stage: str, **values: object) -> Recipe:
    crops = 1 if stage == "head" else 0
    return dataclasses.replace(RECIPE, trained=stage, feature_crops=crops, **values)


def network(config: ModelConfig | SlimConfig) -> Network:
    torch.manual_seed(0)
    return build(config)


def step(recipe: Recipe, model: Network, **computation: object) -> Learner:
    learner = Learner(model, recipe, Computation(**computation), Processes())
    learner.train()
    torch.manual_seed(1)
    images = torch.randint(0, 256, (8, 75, 75, 3), dtype=torch.uint8)
    if recipe.trained == "head":
        images = torch.rand(8, model.classifier.in_features)
    matrix = torch.cat([torch.eye(3) / 64, torch.full((3, 1), -2.0)], 1).expand(8, 3, 4)
    batch = Batch(images, matrix, torch.arange(8) % 2 == 0, torch.arange(8) % 3)
    learner.step(1, batch, 8)
    return learner


def is_frozen(name: str, stage: str, model: Network) -> bool:
    parts = [part for part, _ in model.named_children()]
    return parts.index(name.partition(".")[0]) < parts.index(FIRST_PART[stage])


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.arch)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("computation", [{}, {"micro_batch": 4}, {"checkpoint_activations": True}])
def test_a_step_leaves_frozen_weights_and_statistics_as_they_were_to_the_bit(
    config, stage, computation
):
    model = network(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    learner = step(recipe_for(stage), model, **computation)
    after = learner.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    frozen = {name for name in before if is_frozen(name, stage, model)}
    assert not changed & frozen
    # Convolution before batch norm: no gradient moves its scale, but all of these move.
    assert {n for n in before if n.endswith(".weight")} - frozen <= changed


@pytest.mark.parametrize("stage", STAGES)
def test_frozen_weights_get_no_gradients(stage):
    model = network(CONFIGS[0])
    step(recipe_for(stage), model)
    with_gradients = {n for n, weight in model.named_parameters() if weight.grad is not None}
    assert with_gradients == {
        n for n, _ in model.named_parameters() if not is_frozen(n, stage, model)
    }


def test_frozen_parts_store_no_activations():
    """What goes into the first trained part needs no backward pass."""
    model = network(CONFIGS[0])
    stages = Stages(model, recipe_for("blocks_c"))
    stages.train()
    seen = []
    model.blocks_c.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(torch.rand(4, 3, 75, 75))
    assert seen[0].grad_fn is None
    assert not seen[0].requires_grad


def test_held_batch_norm_keeps_its_statistics_and_trains_its_weights():
    model = network(CONFIGS[0])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    after = step(recipe_for("all", batch_norm="held"), model).model.state_dict()
    for name, norm in model.named_modules():
        if isinstance(norm, GroupBatchNorm2d):
            for buffer in ("running_mean", "running_var", "num_batches_tracked"):
                assert torch.equal(after[f"{name}.{buffer}"], before[f"{name}.{buffer}"])
            assert not torch.equal(after[f"{name}.bias"], before[f"{name}.bias"])


def test_a_setting_has_one_group_of_all_parameters_in_order():
    model = network(CONFIGS[0])
    [group] = Stages(model, RECIPE).parameter_groups()
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]
    assert (group["rate"], group["weight_decay"]) == (1.0, 1e-4)


def test_lower_stages_have_lower_rates_and_only_weights_decay():
    model = network(CONFIGS[1])
    recipe = dataclasses.replace(FINETUNE, backbone_lr_factor=0.01)
    of = {
        id(parameter): (group["rate"], group["weight_decay"])
        for group in Stages(model, recipe).parameter_groups()
        for parameter in group["params"]
    }
    assert set(of) == {id(parameter) for parameter in model.parameters()}
    first = next(model.stem.parameters())
    assert of[id(first)] == (pytest.approx(0.01), recipe.weight_decay)
    assert of[id(model.classifier.weight)] == (1.0, recipe.weight_decay)
    assert of[id(model.classifier.bias)] == (1.0, 0.0)
    middle = next(model.blocks_b.parameters())
    assert of[id(middle)][0] == pytest.approx(0.1)
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            assert of[id(norm.weight)][1] == of[id(norm.bias)][1] == 0.0


def test_the_rate_of_a_step_is_scaled_for_each_group():
    recipe = recipe_for("all", backbone_lr_factor=0.5)
    whole, half = network(CONFIGS[0]), network(CONFIGS[0])
    start = network(CONFIGS[0]).state_dict()
    step(recipe_for("all"), whole)
    step(recipe, half)
    for name, ratio in (("classifier.bias", 1.0), ("stem.0.1.bias", 0.5)):
        full = whole.state_dict()[name] - start[name]
        scaled = half.state_dict()[name] - start[name]
        torch.testing.assert_close(scaled, ratio * full, rtol=1e-4, atol=1e-7)
