"""One step against arithmetic written out by hand, and what must not change its result."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from irv2.errors import EngineError, UsageError
from irv2.model.build import Network, build, initialize
from irv2.network_config import FULL_SIZE, NETWORKS, ModelConfig, SlimConfig
from irv2.train.data.augment import apply_color
from irv2.train.data.loader import Batch
from irv2.train.learner.ema import Ema
from irv2.train.learner.memory import checkpoint_activations
from irv2.train.learner.mixing import draw_mix
from irv2.train.learner.step import Computation, Learner, balanced_weights
from irv2.train.processes import Processes
from irv2.train.settings import SETTINGS, Recipe

RECIPE = dataclasses.replace(SETTINGS["2"], batch_size=8, bn_group=4, image_size=75, resize=75)


both_networks = pytest.mark.parametrize("arch", NETWORKS)


def network(
    dropout: float = 0.0, dtype: torch.dtype = torch.float64, arch: str = ModelConfig.arch
) -> Network:
    torch.manual_seed(0)
    config = dataclasses.replace(
        FULL_SIZE[arch], num_classes=3, blocks=(1, 1, 1), width=0.1, dropout=dropout
    )
    model = build(config)
    initialize(model)
    return model.to(dtype)


def batch(num: int = 8, dtype: torch.dtype = torch.float64, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (num, 75, 75, 3), generator=generator, dtype=torch.uint8)
    matrix = torch.cat([torch.eye(3, dtype=dtype) / 64, torch.full((3, 1), -2, dtype=dtype)], 1)
    return Batch(
        images, matrix.expand(num, 3, 4), torch.arange(num) % 2 == 0, torch.arange(num) % 3
    )


def learner(
    recipe: Recipe = RECIPE, model: Network | None = None, **computation: object
) -> Learner:
    return Learner(model or network(), recipe, Computation(**computation), Processes())


def stepped(
    num_steps: int = 2,
    dropout: float = 0.0,
    recipe: Recipe = RECIPE,
    arch: str = ModelConfig.arch,
    **computation: object,
) -> dict[str, torch.Tensor]:
    """The state after some steps of 8 images and one of 7."""
    mine = learner(recipe, network(dropout, arch=arch), **computation)
    for step in range(1, num_steps + 1):
        num = 8 if step < num_steps else 7
        mine.step(step, batch(num, seed=step), num)
    return mine.model.state_dict()


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_two_steps_are_sgd_with_nesterov_no_dampening_and_decay_on_every_parameter():
    recipe = dataclasses.replace(RECIPE, bn_group=8, decay_steps=1, gamma=0.5)
    mine, theirs = learner(recipe), network().train()
    weights = dict(theirs.named_parameters())
    velocity = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for step in (1, 2):
        images = batch(seed=step)
        mine.step(step, images, 8)
        logits = theirs(apply_color(images.images, images.matrices, images.flips))
        loss = F.cross_entropy(logits, images.labels)
        gradients = torch.autograd.grad(loss, list(weights.values()))
        # A step is 8 images: an eighth of the rate, and no decay within the first 64.
        rate = 0.045 / 8
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            decayed = gradient + 1e-4 * weight.detach()
            velocity[name] = 0.4737 * velocity[name] + decayed
            weight.data -= rate * (decayed + 0.4737 * velocity[name])
    for name, weight in mine.model.named_parameters():  # float64, another order of operations
        torch.testing.assert_close(weight, weights[name], rtol=1e-9, atol=1e-12)


def test_balanced_weights_give_every_class_the_same_sum_and_images_a_mean_of_1():
    labels = np.array([0] * 6 + [1] * 3 + [3])  # none of class 2
    weights = balanced_weights(labels, 4)
    torch.testing.assert_close(weights, torch.tensor([10 / 18, 10 / 9, 0, 10 / 3]))
    assert weights[labels].mean() == pytest.approx(1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_weighted_loss_is_each_images_loss_times_the_weight_of_its_class(smoothing):
    recipe = dataclasses.replace(RECIPE, bn_group=8, label_smoothing=smoothing)
    weights = torch.tensor([0.25, 1.0, 4.0])
    mine = Learner(network(), recipe, Computation(), Processes(), weights)
    theirs, images = network().train(), batch()
    before = {name: weight.detach().clone() for name, weight in theirs.named_parameters()}
    totals = mine.step(1, images, 8)
    logits = theirs(apply_color(images.images, images.matrices, images.flips))
    targets = F.one_hot(images.labels, 3).double() * (1 - smoothing) + smoothing / 3
    each = -(targets * logits.log_softmax(1)).sum(1)
    loss = sum(weights[label] * one for label, one in zip(images.labels, each, strict=True))
    assert totals[0] == pytest.approx(loss.item())
    gradients = torch.autograd.grad(loss / 8, list(theirs.parameters()))
    for (name, weight), gradient in zip(mine.model.named_parameters(), gradients, strict=True):
        first = before[name] - 0.045 / 8 * 1.4737 * (gradient + 1e-4 * before[name])
        torch.testing.assert_close(weight, first, rtol=1e-9, atol=1e-12)


def test_weights_of_1_change_nothing():
    alike = Learner(network(), RECIPE, Computation(), Processes(), torch.ones(3))
    plain = learner()
    for each in (alike, plain):
        each.step(1, batch(), 8)
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(alike.model.state_dict()[name], value, rtol=1e-12, atol=1e-14)


def test_totals_count_loss_and_errors_over_the_images():
    mine, images = learner(), batch(7)
    totals = mine.step(1, images, 7)
    expected = (
        learner().model.train()(apply_color(images.images, images.matrices, images.flips)).detach()
    )
    assert totals[3] == 7
    assert totals[0] == pytest.approx(F.cross_entropy(expected, images.labels).item() * 7)
    assert totals[1] == (expected.argmax(1) != images.labels).sum()
    assert totals[2] == 0  # three classes: one of five guesses is right


@both_networks
def test_micro_batches_change_results_by_rounding_and_statistics_not_at_all(arch):
    groups, micro_batches = stepped(1, arch=arch), stepped(1, arch=arch, micro_batch=4)
    for name, value in groups.items():
        torch.testing.assert_close(micro_batches[name], value, rtol=1e-9, atol=1e-12)
    assert micro_batches["stem.0.1.num_batches_tracked"] == 1


MIXED = [{"mixup": 1.0}, {"cutmix": 1.0}]


@pytest.mark.parametrize("values", MIXED, ids=str)
def test_micro_batches_are_mixed_as_the_whole_batch(values):
    recipe = dataclasses.replace(RECIPE, **values)
    whole, parts = stepped(recipe=recipe), stepped(recipe=recipe, micro_batch=4)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-9, atol=1e-12)
    assert not torch.equal(whole["classifier.weight"], stepped()["classifier.weight"])


@pytest.mark.parametrize("values", MIXED, ids=str)
def test_labels_of_mixed_images_weigh_as_much_as_their_pixels(values):
    recipe = dataclasses.replace(RECIPE, bn_group=8, label_smoothing=0.1, **values)
    images, mix = batch(), draw_mix(recipe, 3)
    others = [*range(1, 8), 0]
    colored = apply_color(images.images, images.matrices, images.flips)
    logits = network().train()(mix.images(colored, torch.tensor(others)))
    labels = F.one_hot(images.labels, 3).double()
    mixed = mix.own_share * labels + (1 - mix.own_share) * labels[others]
    totals = learner(recipe).step(3, images, 8)
    expected = F.cross_entropy(logits, mixed, reduction="sum", label_smoothing=0.1)
    assert totals[0].item() == pytest.approx(expected.item())
    assert totals[1] == (logits.argmax(1) != mixed.argmax(1)).sum()


@both_networks
def test_activations_computed_again_leave_weights_and_running_statistics_as_they_are(arch):
    again = stepped(dropout=0.2, arch=arch, checkpoint_activations=True)
    assert_equal(again, stepped(dropout=0.2, arch=arch))


@both_networks
def test_activations_computed_again_in_micro_batches_neither(arch):
    again = stepped(arch=arch, micro_batch=4, checkpoint_activations=True)
    assert_equal(again, stepped(arch=arch, micro_batch=4))


def test_checkpointed_blocks_keep_their_names():
    model = network()
    names = list(model.state_dict())
    checkpoint_activations(model)
    assert list(model.state_dict()) == names


def test_what_dropout_drops_depends_on_seed_and_step_alone():
    first = stepped(dropout=0.5)
    torch.manual_seed(99)
    assert_equal(stepped(dropout=0.5), first)
    other = stepped(dropout=0.5, recipe=dataclasses.replace(RECIPE, seed=1))
    assert not torch.equal(other["classifier.weight"], first["classifier.weight"])


def test_a_process_without_images_gives_zero_gradients():
    nothing = torch.empty(0)
    mine = learner(model=network(dtype=torch.float32))
    mine.step(1, Batch(nothing, nothing, nothing, nothing), 8)
    gradients = [parameter.grad for parameter in mine.model.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_trains_float32_weights(precision):
    recipe = dataclasses.replace(RECIPE, precision=precision)
    mine = learner(recipe, network(dtype=torch.float32))
    exact = learner(model=network(dtype=torch.float32))
    images = batch(dtype=torch.float32)
    loss, expected = (a.step(1, images, 8)[0].item() for a in (mine, exact))
    assert loss == pytest.approx(expected, rel=0.05)  # bf16 keeps 8 bits through 40 layers
    assert loss != expected
    assert {weight.dtype for weight in mine.model.parameters()} == {torch.float32}
    assert ("scaler" in mine.state()) == (precision == "fp16")


def test_an_fp16_run_whose_first_step_overflows_stays_finite():
    # Deterministic, torch fills memory that nobody has initialised with nan.
    recipe = dataclasses.replace(RECIPE, precision="fp16", deterministic=True)
    mine = learner(recipe, network(dtype=torch.float32))
    before = mine.model.classifier.weight.clone()
    moved = []
    for step in range(1, 11):
        mine.step(step, batch(dtype=torch.float32), 8)
        moved.append(not torch.equal(mine.model.classifier.weight, before))
    torch.use_deterministic_algorithms(False)
    assert (moved[0], moved[-1]) == (False, True)  # the scaler begins with 65536
    momenta = [state["momentum_buffer"] for state in mine.state()["optimizer"]["state"].values()]
    assert mine.is_finite
    assert all(momentum.isfinite().all() for momentum in momenta)


def test_label_smoothing_is_in_the_loss():
    recipe = dataclasses.replace(RECIPE, label_smoothing=0.1)
    images = batch()
    logits = network().train()(apply_color(images.images, images.matrices, images.flips))
    expected = F.cross_entropy(logits, images.labels, label_smoothing=0.1).item() * 8
    mine = learner(dataclasses.replace(recipe, bn_group=8))
    assert mine.step(1, images, 8)[0] == pytest.approx(expected)


def test_the_average_of_the_weights_follows_its_decay_statistics_included():
    model = network()
    average = Ema(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for value in model.state_dict().values():
        value.add_(1)
    average.update(model, 0.75)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            expected = 0.75 * before[name] + 0.25 * value
            torch.testing.assert_close(average.state_dict[name], expected)
        else:
            assert average.state_dict[name] == value


def test_micro_batches_that_tear_a_group_are_refused():
    with pytest.raises(UsageError, match="--micro-batch: 6 images; expected a multiple of 4"):
        Computation(micro_batch=6).check(RECIPE, Processes())


@pytest.mark.parametrize(
    ("batch_size", "bn_group", "micro_batch", "num_processes"),
    [(12, 4, 8, 1), (96, 32, 64, 1), (24, 4, 8, 2)],
)
def test_micro_batches_of_unequal_numbers_of_groups_are_refused(
    batch_size, bn_group, micro_batch, num_processes
):
    """The last would be split into as many groups as the others have: smaller ones."""
    recipe = dataclasses.replace(RECIPE, batch_size=batch_size, bn_group=bn_group)
    with pytest.raises(UsageError, match=f"--micro-batch: {micro_batch} images of "):
        Computation(micro_batch=micro_batch).check(recipe, Processes(size=num_processes))


@pytest.mark.parametrize("micro_batch", [4, 8, 16, 64])
def test_micro_batches_of_equally_many_groups_are_taken(micro_batch):
    recipe = dataclasses.replace(RECIPE, batch_size=16)
    Computation(micro_batch=micro_batch).check(recipe, Processes())


@pytest.mark.parametrize("damaged", ["weight", "running_var", "average"])
def test_a_state_with_a_number_that_is_none_is_noticed(damaged):
    mine = learner(dataclasses.replace(RECIPE, ema_decay=0.9))
    assert mine.is_finite
    norm = mine.model.stem[0][1]
    values = {
        "weight": norm.weight.data,
        "running_var": norm.running_var,
        "average": mine.ema.state_dict["classifier.weight"][0],
    }
    values[damaged][1] = torch.nan
    assert not mine.is_finite


def test_a_batch_that_does_not_split_over_the_processes_is_refused():
    with pytest.raises(UsageError, match="8 images on 3 processes; expected a multiple of 12"):
        Computation().check(RECIPE, Processes(rank=0, size=3, local_rank=0, local_size=3))


def test_a_step_without_memory_is_one_line():
    mine = learner()
    mine.model.register_forward_hook(lambda *_: torch.empty(2**60))
    with pytest.raises(EngineError, match=r"memory: .*can't allocate.*--micro-batch"):
        mine.step(1, batch(), 8)


def test_compile_and_checkpointed_activations_are_refused_together():
    both = Computation(compile=True, checkpoint_activations=True)
    with pytest.raises(UsageError, match="given with --compile; expected one of the two"):
        both.check(RECIPE, Processes())


def test_compiling_tf_slim_s_network_is_refused_on_a_cpu_alone():
    recipe = dataclasses.replace(RECIPE, arch=SlimConfig.arch)
    with pytest.raises(UsageError, match=r"--compile: given for inception_resnet_v2_slim on a CPU"):
        Computation(compile=True).check(recipe, Processes())
    Computation(compile=True).check(RECIPE, Processes())
    Computation(compile=True, device="cuda:0").check(recipe, Processes())


def test_what_a_compiler_failed_at_is_said():
    def broken_backend(*_: object) -> None:
        raise ValueError("no Triton here")

    mine = learner()
    compiled = torch.compile(lambda logits: logits + 1, backend=broken_backend)
    mine.model.register_forward_hook(lambda _module, _images, logits: compiled(logits.detach()))
    with pytest.raises(EngineError, match=r"--compile: ValueError: no Triton here; .* leave out"):
        mine.step(1, batch(), 8)
