"""param_groups and freeze_stats: what an optimizer gets, and statistics that stay."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

import calibnorm as cn
from cases import randn
from conversion.helpers import Small, convert, norms, small, statistics

METHODS = ["bn", "iebn", "rbn"]
each_method = pytest.mark.parametrize("method", METHODS)


def grouped(net, **options):
    """Names of the parameters by their weight decay."""
    names = {id(p): name for name, p in net.named_parameters()}
    groups = cn.param_groups(net, 0.1, **options)
    seen = [id(p) for group in groups for p in group["params"]]
    assert len(seen) == len(set(seen))
    assert set(seen) == {id(p) for p in net.parameters() if p.requires_grad}
    return {group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in groups}


def gates(net):
    return {f"{name}.{gate}" for name, layer in norms(net).items() for gate in layer.gates()}


@pytest.mark.parametrize("options", [{}, {"operator": "fc"}], ids=str)
@pytest.mark.parametrize("decay_gates", [True, False])
@pytest.mark.parametrize("decay_norm_and_bias", [True, False])
def test_every_parameter_is_in_one_group(options, decay_gates, decay_norm_and_bias):
    net = convert(small(), "iebn", **options)
    net.conv1.weight.requires_grad_(False)
    found = grouped(net, decay_gates=decay_gates, decay_norm_and_bias=decay_norm_and_bias)
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    flat = {name for name in trained - gates(net) if net.get_parameter(name).ndim == 1}
    free = (set() if decay_gates else gates(net)) | (set() if decay_norm_and_bias else flat)
    assert found.get(0.0, set()) == free
    assert found[0.1] == trained - free


@pytest.mark.parametrize("decay_gates", [True, False])
@pytest.mark.parametrize("decay_norm_and_bias", [True, False])
def test_gates_have_a_learning_rate_of_their_own(decay_gates, decay_norm_and_bias):
    net = convert(small(), "iebn")
    names = {id(p): name for name, p in net.named_parameters()}
    groups = cn.param_groups(net, 0.1, decay_gates=decay_gates, decay_norm_and_bias=decay_norm_and_bias, gate_lr=0.001)
    own = [group for group in groups if "lr" in group]
    assert [(group["lr"], group["weight_decay"]) for group in own] == [(0.001, 0.1 if decay_gates else 0.0)]
    assert {names[id(p)] for p in own[0]["params"]} == gates(net)
    everything = [id(p) for group in groups for p in group["params"]]
    assert sorted(everything) == sorted(names)
    optimizer = torch.optim.SGD(groups, lr=0.5)
    assert {group["lr"] for group in optimizer.param_groups} == {0.5, 0.001}


def test_a_network_without_gates_has_no_group_for_them():
    assert all("lr" not in group for group in cn.param_groups(small(), 0.1, gate_lr=0.001))


def test_shared_parameters_and_layers_come_once():
    net = convert(small(), "rbn")
    net.again = net.bn1
    net.fc2 = nn.Linear(6, 5)
    net.fc2.weight = net.fc.weight
    grouped(net)


def test_an_optimizer_decays_what_it_should():
    """Without a gradient the decay alone moves a parameter, and gates stay."""
    net = convert(small(), "iebn")
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = torch.optim.AdamW(cn.param_groups(net, weight_decay=0.5), lr=0.1)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    moved = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert moved == before.keys() - gates(net)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"weight_decay": -1}, ValueError, "weight_decay=-1 must be 0 or more"),
        ({"weight_decay": None}, TypeError, "weight_decay=None must be a real number"),
        ({"weight_decay": 0.1, "gate_lr": -1.0}, ValueError, "gate_lr=-1.0 must be 0 or more"),
        ({"weight_decay": 0.1, "gate_lr": "1"}, TypeError, "gate_lr='1' must be a real number"),
        ({"weight_decay": 0.1, "decay_gates": None}, TypeError, "decay_gates=None must be True or False"),
        ({"weight_decay": 0.1, "decay_norm_and_bias": 1}, TypeError, "decay_norm_and_bias=1 must be True or False"),
    ],
)
def test_bad_groups(arguments, error, message):
    with pytest.raises(error, match=message):
        cn.param_groups(small(), **arguments)


@each_method
def test_frozen_statistics_survive_train_and_gates_learn(method):
    net, x = convert(small(), method, preserve=True), randn(4, 3, 5, 5, seed=5)
    expected = net(x)
    assert cn.freeze_stats(net) is net
    net.eval().train()
    before = [s.clone() for s in statistics(net)]
    y = net(x)
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    assert all(torch.equal(s, t) for s, t in zip(statistics(net), before, strict=True))
    for layer in norms(net).values():
        for name, gate in layer.gates().items():
            assert (gate.grad is None) == (name == "center_weight")
            assert gate.grad is None or gate.grad.any()
        assert layer.weight.grad.any()
    cn.freeze_stats(net, False)(x)
    assert not any(torch.equal(s, t) for s, t in zip(statistics(net), before, strict=True))
    assert all(gate.requires_grad for layer in norms(net).values() for gate in layer.gates().values())


def test_the_center_learns_where_asked():
    net = convert(small(), "rbn")
    for center in (False, True, False):
        cn.freeze_stats(net, center=center)
        assert all(layer.center_weight.requires_grad is center for layer in norms(net).values())


def test_thawing_leaves_alone_what_was_not_frozen():
    """Whoever froze w_m by hand finds it frozen."""
    net = convert(small(), "rbn")
    net.bn1.center_weight.requires_grad_(False)
    cn.freeze_stats(net, False)
    assert not net.bn1.center_weight.requires_grad


def test_a_frozen_source_keeps_its_center_frozen():
    layer = cn.convert(FrozenBatchNorm2d(4), "rbn")
    for frozen in (True, False):
        cn.freeze_stats(layer, frozen)
        assert not layer.center_weight.requires_grad
    assert layer.scale_weight.requires_grad


def test_statistics_that_are_not_there_cannot_freeze():
    net = nn.Sequential(cn.RBN2d(4), cn.RBN2d(4, track_running_stats=False))
    with pytest.raises(ValueError, match=r"1 keeps no running statistics \(track_running_stats=False\) to freeze"):
        cn.freeze_stats(net)
    assert (net[0].frozen, net[0].center_weight.requires_grad) == (False, True)
    cn.freeze_stats(net, False)


def test_plain_batchnorms_are_said():
    net = convert(small(), "iebn", include="bn1")
    with pytest.warns(UserWarning, match=r"2 plain BatchNorms are not frozen \(layer1\.1, downsample\.1\); convert"):
        cn.freeze_stats(net)
    assert net.bn1.frozen
    cn.freeze_stats(net, False)  # thawing concerns none of them
    cn.freeze_stats(nn.Sequential(cn.BN2d(3), FrozenBatchNorm2d(3)))


def test_conversions_of_a_frozen_network():
    """Another method, or the same with other options, stays frozen; copies and the state too; BatchNorm cannot."""
    net, x = cn.freeze_stats(convert(small(), "iebn")), randn(4, 3, 5, 5, seed=5)
    convert(net, "rbn")
    for twin in (net, copy.deepcopy(net)):
        assert all(layer.frozen and not layer.center_weight.requires_grad for layer in norms(twin).values())
        before = [s.clone() for s in statistics(twin)]
        twin.train()(x)
        assert all(torch.equal(s, t) for s, t in zip(statistics(twin), before, strict=True))
    cn.revert(net).train()(x)
    assert not torch.equal(net.bn1.running_mean, before[0])


def test_new_layers_in_a_frozen_network_are_not_frozen():
    net = cn.freeze_stats(cn.convert(Small(), "iebn"))
    net.extra = cn.convert(nn.BatchNorm2d(4), "iebn")
    assert not net.extra.frozen


@pytest.mark.parametrize("arguments", [{"frozen": 1}, {"center": None}], ids=str)
def test_bad_flags(arguments):
    with pytest.raises(TypeError, match="must be True or False"):
        cn.freeze_stats(cn.RBN2d(4), **arguments)


@pytest.mark.parametrize("centers", [(False,), (False, False), (True,), (False, True), (True, False)], ids=str)
def test_thawing_restores_what_the_user_chose(centers):
    """bn1's w_m was held by hand, the others learn; center=True leaves both as they are."""
    net = convert(small(), "rbn")
    net.bn1.center_weight.requires_grad_(False)
    chosen = [False, True, True]
    for center in centers:
        cn.freeze_stats(net, center=center)
        net = copy.deepcopy(net)
        expected = chosen if center else [False] * 3
        assert [layer.center_weight.requires_grad for layer in norms(net).values()] == expected
    cn.freeze_stats(net, False)
    assert [layer.center_weight.requires_grad for layer in norms(net).values()] == chosen


def test_the_center_of_a_frozen_source_learns_where_asked():
    layer = cn.convert(FrozenBatchNorm2d(4), "rbn")
    for center in (False, True, False):
        cn.freeze_stats(layer, center=center)
        assert layer.center_weight.requires_grad is center
