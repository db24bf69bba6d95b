"""Conversion to every method: whole networks that take a training step, plans, and the way back."""

from __future__ import annotations

import copy
import functools
import json
import warnings
from collections.abc import Iterator

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.functional import cross_entropy

import calibnorm as cn
from calibnorm.nn import CalibratedNorm
from cases import randn
from conversion.helpers import NORMS, convert, relative, small, statistics

OF_INSTANCES = ("in", "gn", "ln", "ilm", "frn")
NETWORKS = ("resnet50", "mobilenet_v2", "efficientnet_b0")
COMPOSED = [
    ("rbn", {"over": "sn"}),
    ("rbn", {"over": "in"}),
    ("iebn", {"over": {"method": "rbn", "scaling": False}}),
    ("iebn", {"over": {"method": "rbn", "scaling": False, "init": [0.1, 0.0, 1.0]}, "position": "beta"}),
]


@functools.cache
def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    net: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=10)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # after one step eval has the statistics of that batch
        elif isinstance(module, nn.Dropout | torchvision.ops.StochasticDepth):
            module.p = 0.0  # and computes as training does
    return net


def layers(net: nn.Module) -> Iterator[CalibratedNorm]:
    return (module for module in net.modules() if isinstance(module, CalibratedNorm))


# Method and network do not know of each other: in turn here, and every pair nightly.
STEPS = [
    pytest.param(name, method, marks=[] if i % len(NETWORKS) == j else pytest.mark.nightly)
    for j, name in enumerate(NETWORKS)
    for i, method in enumerate(cn.methods())
]


@pytest.mark.parametrize(("name", "method"), STEPS)
def test_networks_take_a_training_step(name, method):
    net = cn.convert(copy.deepcopy(network(name)), method).train()
    assert all(layer.method.name == method for layer in layers(net))
    x, labels = randn(2, 3, 64, 64), torch.tensor([0, 1])
    before = {key: p.detach().clone() for key, p in net.named_parameters() if p.ndim == 4}
    loss = cross_entropy(net(x), labels)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)  # AN in place of every BatchNorm starts with huge gradients
    torch.optim.SGD(net.parameters(), 1e-2).step()
    assert all(p.isfinite().all() for p in net.parameters())
    assert not any(torch.equal(net.get_parameter(key), p) for key, p in before.items())
    moved = [layer.bn.num_batches_tracked.item() == 1 for layer in layers(net)]
    assert moved
    assert all(moved) != (method in OF_INSTANCES)
    with torch.no_grad():
        assert net.eval()(x).isfinite().all()


@pytest.mark.parametrize(("method", "options"), [*((m, {}) for m in cn.methods() if m != "se"), *COMPOSED], ids=str)
def test_plans_rebuild_the_network(method, options):
    net = convert(small(), method, **options)
    plan = json.loads(json.dumps(cn.plan(net)))
    again = convert(small(seed=1), plan)
    again.load_state_dict(net.state_dict())
    x = randn(4, 3, 5, 5)
    assert torch.equal(again(x), net(x))
    assert json.loads(json.dumps(cn.plan(again))) == plan
    assert convert(again, plan) is again
    assert [type(layer) for layer in layers(again)] == [type(layer) for layer in layers(net)]


@pytest.mark.parametrize("method", ["ghost", "brn"])
def test_what_is_batch_norm_in_eval_comes_and_goes_unchanged(method):
    net, x = small(), randn(4, 3, 5, 5)
    before = net(x)
    assert relative(convert(net, method, preserve=True)(x), before) <= 1e-6
    assert relative(cn.revert(net)(x), before) <= 1e-6
    assert type(net.bn1) is nn.BatchNorm2d


@pytest.mark.parametrize("method", ["in", "gn", "ln", "sn", "bcn", "ilm", "frn", "an"])
def test_what_is_no_batch_norm_goes_back_only_with_losses(method):
    net = small()
    kept = [t.clone() for t in statistics(net)], [p.clone() for p in (net.bn1.weight, net.bn1.bias)]
    convert(net, method)
    with pytest.raises(ValueError, match=f"bn1 .* computes '{method}', which plain BatchNorm cannot do"):
        cn.revert(net)
    with pytest.raises(ValueError, match=f"preserve=True cannot keep .* with {method}, which does not start as"):
        convert(small(), method, preserve=True)
    cn.revert(net, lossy=True)
    assert all(map(torch.equal, statistics(net), kept[0]))
    assert all(map(torch.equal, (net.bn1.weight, net.bn1.bias), kept[1]))


def test_se_goes_behind_the_last_norm_of_every_branch():
    net = cn.convert(torchvision.models.resnet18(), "se")
    assert list(cn.plan(net)["layers"]) == [f"layer{i}.{j}.bn2" for i in (1, 2, 3, 4) for j in (0, 1)]
    net = cn.convert(torchvision.models.resnet50(), "se", stages=2)
    assert list(cn.plan(net)["layers"]) == [f"layer2.{j}.bn3" for j in range(4)]
    assert cn.plan(net)["left"]["bn1"] == "plain BatchNorm2d"
    net = torchvision.models.mobilenet_v2()
    plan = cn.plan(net, "se")
    shortcuts = [i for i, block in enumerate(net.features) if getattr(block, "use_res_connect", False)]
    assert list(plan["layers"]) == [f"features.{i}.conv.3" for i in shortcuts]
    assert plan["left"]["features.0.1"] == "not the last of a residual branch"


def test_se_parameters_are_those_of_the_paper_s_table():
    """SE-ResNet-50 of the IEBN paper has 28.09 M parameters."""
    net = cn.convert(torchvision.models.resnet50(), "se")
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 2) == 28.09


def test_se_with_layers_named_one_by_one():
    net = convert(small(), "se", include=NORMS[:2])
    assert [type(net.bn1), type(net.layer1[1])] == [cn.SE2d, cn.SE2d]
    net = convert(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), "se", where=lambda name, module: True)
    assert type(net[1]) is cn.SE2d


class PreActivation(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return x + self.conv(self.bn(x))


class Untraceable(PreActivation):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (torchvision.models.vgg11_bn(), "VGG has no residual branches, after which .*; name the layers with include="),
        (PreActivation(), r"ends in a convolution put SE2d\(alone=True\), or name the layers with include="),
        (Untraceable(), "residual branches of Untraceable were not found .*; name the layers with include="),
    ],
    ids=["plain", "preactivation", "untraceable"],
)
def test_se_says_what_to_do_where_no_branch_is_found(net, message):
    with pytest.raises(ValueError, match=message):
        cn.convert(net, "se")


def test_se_alone_is_no_normalization():
    with pytest.raises(ValueError, match=r"bn1: .* cannot take a BatchNorm's place"):
        convert(small(), "se", alone=True)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), cn.SE2d(4, alone=True))
    assert cn.summary(net) == []
    with pytest.warns(UserWarning, match="has no BatchNorm"):
        assert type(cn.convert(net, "gn")[1]) is cn.SE2d
    assert type(cn.revert(net, lossy=True)[1]) is cn.SE2d


def test_calibrated_layers_become_other_methods():
    net = convert(small(), "iebn")
    assert type(convert(net, "gn").bn1) is cn.GN2d
    with pytest.raises(ValueError, match="computes 'gn'"):
        convert(net, "rbn")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert type(convert(cn.revert(net, lossy=True), "rbn", over="gn").bn1) is cn.RBN2d
    assert net.bn1.options() == {"over": "gn"}


def test_options_of_groups_are_checked_before_anything_changes():
    net = small()
    with pytest.raises(ValueError, match=r"layer1.1: 6 channels are no multiple of 4"):
        convert(net, "gn", groups=4)
    assert type(convert(net, "gn", groups=2).bn1) is cn.GN2d


def test_matrices_decay_and_gates_do_not():
    net = nn.Sequential(cn.SE2d(16), cn.AN2d(8), cn.IEBN2d(16, operator="fc"), cn.SN2d(4))
    named = {id(p): name for name, p in net.named_parameters()}
    decayed, free = ([named[id(p)] for p in g["params"]] for g in cn.param_groups(net, 1e-4))
    assert [name for name in decayed if ".bn." not in name] == ["0.fc1_weight", "0.fc2_weight", "1.attention_fc"]
    assert {"0.fc1_bias", "1.mixture_weight", "2.fc1_weight", "3.mean_weight"} <= set(free)


def test_frozen_statistics_hold_what_enters_them_in_a_composition_too():
    layer = cn.freeze_stats(cn.RBN2d(4, over="sn"))
    assert [layer.center_weight.requires_grad, layer.scale_weight.requires_grad] == [False, True]
    cn.freeze_stats(layer, False)
    assert layer.center_weight.requires_grad
    alone = cn.freeze_stats(cn.RBN2d(4, over="in"))  # no statistics of a batch, nothing to belong to
    assert alone.center_weight.requires_grad


def test_summary_says_that_instances_stand_alone():
    assert [row.statistics for row in cn.summary(convert(small(), "gn", groups=2).train())] == ["instance"] * 3
