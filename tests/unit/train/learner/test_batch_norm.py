import copy

import pytest
import torch
from torch import nn

from irv2.model import inception_resnet_v2
from irv2.model.build import build
from irv2.network_config import SlimConfig
from irv2.train.learner.batch_norm import GroupBatchNorm2d, group_batch_norm
from irv2.train.settings import split_groups


def grouped(num_groups: int, channels: int = 5) -> tuple[nn.BatchNorm2d, GroupBatchNorm2d]:
    torch.manual_seed(0)
    plain = nn.BatchNorm2d(channels).double()
    nn.init.normal_(plain.weight)
    nn.init.normal_(plain.bias)
    return plain, GroupBatchNorm2d.like(copy.deepcopy(plain), num_groups).double()


def test_each_group_is_normalised_alone_and_the_first_gives_the_running_statistics():
    plain, norm = grouped(2)
    x = torch.randn(10, 5, 3, 3, dtype=torch.float64)
    first = plain(x[:5])
    running_mean, running_var = plain.running_mean.clone(), plain.running_var.clone()
    expected = torch.cat([first, plain(x[5:])])
    torch.testing.assert_close(norm(x), expected)
    torch.testing.assert_close(norm.running_mean, running_mean)
    torch.testing.assert_close(norm.running_var, running_var)
    assert norm.num_batches_tracked == 1


def test_eval_mode_is_plain_batch_norm():
    plain, norm = grouped(2)
    x = torch.randn(6, 5, 2, 2, dtype=torch.float64)
    norm(x), plain(x[:3])
    torch.testing.assert_close(norm.eval()(x), plain.eval()(x))


@pytest.mark.parametrize(
    ("num_images", "num_groups", "expected"),
    [(64, 2, 2), (15, 2, 2), (4, 2, 2), (3, 2, 1), (2, 2, 1), (5, 4, 2), (64, 1, 1)],
)
def test_short_batches_split_as_evenly_as_they_can(num_images, num_groups, expected):
    assert split_groups(num_images, num_groups) == expected


def test_a_batch_of_15_is_normalised_as_8_and_7():
    plain, norm = grouped(2)
    x = torch.randn(15, 5, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(norm(x), torch.cat([plain(x[:8]), plain(x[8:])]))


def test_gradients_equal_those_of_separate_batches():
    plain, norm = grouped(2)
    x = torch.randn(8, 5, 2, 2, dtype=torch.float64)
    weights = torch.randn(8, 5, 2, 2, dtype=torch.float64)
    (norm(x) * weights).sum().backward()
    ((plain(x[:4]) * weights[:4]).sum() + (plain(x[4:]) * weights[4:]).sum()).backward()
    torch.testing.assert_close(norm.weight.grad, plain.weight.grad)
    torch.testing.assert_close(norm.bias.grad, plain.bias.grad)


def test_a_whole_network_keeps_its_state_dict_and_its_parameters():
    model = inception_resnet_v2(3, (1, 1, 1), 0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = {id(parameter) for parameter in model.parameters()}
    group_batch_norm(model, 2)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert {id(parameter) for parameter in model.parameters()} == parameters
    assert not any(type(module) is nn.BatchNorm2d for module in model.modules())


def test_tf_slims_epsilon_and_decay_hold_in_groups_too():
    model = build(SlimConfig(num_classes=3, blocks=(1, 1, 1), width=0.1))
    group_batch_norm(model, 2)
    norms = [module for module in model.modules() if isinstance(module, GroupBatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.0003)}
    x = torch.randn(8, norms[0].num_features, 3, 3) / 100  # of a variance below epsilon
    groups = torch.cat([(g - g.mean((0, 2, 3), True)) for g in x.split(4)])
    variances = [g.var((0, 2, 3), correction=0, keepdim=True) for g in x.split(4)]
    scales = torch.cat([(v + 1e-3).rsqrt().expand(4, -1, 3, 3) for v in variances])
    torch.testing.assert_close(norms[0].train()(x), groups * scales)
    torch.testing.assert_close(norms[0].running_mean, 0.0003 * x[:4].mean((0, 2, 3)))


def test_groups_in_one_process_give_the_gradients_of_separate_micro_batches():
    torch.manual_seed(1)
    grouped_model = inception_resnet_v2(3, (1, 1, 1), 0.1, dropout=0.0).double()
    plain_model = copy.deepcopy(grouped_model)
    group_batch_norm(grouped_model, 2)
    images, labels = torch.randn(8, 3, 75, 75, dtype=torch.float64), torch.arange(8) % 3
    nn.functional.cross_entropy(grouped_model(images), labels).backward()
    for part in (slice(0, 4), slice(4, 8)):
        loss = nn.functional.cross_entropy(plain_model(images[part]), labels[part])
        (loss / 2).backward()
    pairs = zip(grouped_model.parameters(), plain_model.parameters(), strict=True)
    for mine, theirs in pairs:  # float64 leaves room only for another order of additions
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-7, atol=1e-10)
