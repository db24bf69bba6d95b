"""Which parameters decay: timm goes by dimensions, torchvision's recipe by class, ``cn.param_groups`` by name."""

from __future__ import annotations

import pytest
import timm.optim
import torch
from torch import nn
from torch.nn.utils import parametrize

import calibnorm as cn
from cases import each_method, layer_of
from ecosystem.nets import GATES, LAYERS, NAMES, gates, images, loss, network


def names_by_decay(model, groups):
    names = {id(p): name for name, p in model.named_parameters()}
    found = {}
    for group in groups:
        found.setdefault(group.get("weight_decay", 0.0), set()).update(names[id(p)] for p in group["params"])
    assert sum(len(group["params"]) for group in groups) == len(names), "every parameter once"
    assert set().union(*found.values()) == set(names.values())
    return found


@pytest.mark.parametrize("norm", LAYERS)
def test_timm_decays_no_gate(norm):
    model = network(norm)
    found = names_by_decay(model, timm.optim.param_groups_weight_decay(model, weight_decay=0.05))
    assert found[0.05] == {"conv1.weight", "conv2.weight", "conv3.weight", "fc.weight"}
    assert set(gates(model)) <= found[0.0]


def torchvision_recipe(model, weight_decay, norm_weight_decay, norm_classes):
    """The rule of torchvision's reference training script: a parameter counts by the class of the module it is in."""
    groups = {"other": [], "norm": []}
    for module in model.modules():
        kind = "norm" if isinstance(module, norm_classes) else "other"
        groups[kind].extend(p for p in module.parameters(recurse=False) if p.requires_grad)
    return [
        {"params": groups["other"], "weight_decay": weight_decay},
        {"params": groups["norm"], "weight_decay": norm_weight_decay},
    ]


@pytest.mark.parametrize("norm", LAYERS)
def test_torchvisions_recipe_sees_gamma_and_needs_our_class_for_the_gates(norm):
    model = network(norm)
    classes = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
    found = names_by_decay(model, torchvision_recipe(model, 0.05, 0.0, classes))
    assert found[0.0] == {f"bn{i}.bn.{name}" for i in (1, 2, 3) for name in ("weight", "bias")}
    assert set(gates(model)) <= found[0.05]  # as documented: cn.param_groups, or one more class in the list
    found = names_by_decay(model, torchvision_recipe(model, 0.05, 0.0, (*classes, norm)))
    assert set(gates(model)) <= found[0.0]


@pytest.mark.parametrize("norm", LAYERS)
def test_param_groups_decays_everything_but_the_gates(norm):
    model = network(norm)
    found = names_by_decay(model, cn.param_groups(model, weight_decay=0.05))
    assert found[0.0] == set(gates(model))
    found = names_by_decay(model, cn.param_groups(model, weight_decay=0.05, decay_norm_and_bias=False))
    assert found[0.05] == {"conv1.weight", "conv2.weight", "conv3.weight", "fc.weight"}
    assert set(names_by_decay(model, cn.param_groups(model, weight_decay=0.05, decay_gates=True))) == {0.05}


def test_param_groups_knows_the_matrices_of_the_fc_operator():
    model = nn.Sequential(nn.Conv2d(3, 32, 3), cn.IEBN2d(32, operator="fc"))
    found = names_by_decay(model, cn.param_groups(model, weight_decay=0.05))
    assert found[0.0] == {f"1.{name}" for name in ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")}
    # timm goes by the number of dimensions alone, and takes the two matrices for weights.
    found = names_by_decay(model, timm.optim.param_groups_weight_decay(model, weight_decay=0.05))
    assert {"1.fc1_weight", "1.fc2_weight"} <= found[0.05]


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.parametrize("norm", LAYERS)
def test_param_groups_follows_a_parametrized_gate(norm):
    model = network(norm)
    gate = next(iter(model.bn1.gates()))
    parametrize.register_parametrization(model.bn1, gate, Doubled())
    found = names_by_decay(model, cn.param_groups(model, weight_decay=0.05))
    assert f"bn1.parametrizations.{gate}.original" in found[0.0]
    assert "bn1.bn.weight" in found[0.05]


@pytest.mark.parametrize("name", NAMES)
def test_only_decayed_parameters_shrink(name):
    # Without gradients AdamW moves a parameter by its weight decay alone.
    model = network({"iebn": cn.IEBN2d, "rbn": cn.RBN2d}[name])
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(cn.param_groups(model, weight_decay=0.5), lr=0.1)
    loss(model(images())).mul(0.0).backward()
    optimizer.step()
    shrunk = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert shrunk == {n for n in before if n.rpartition(".")[2] not in GATES}


def ultralytics(model):
    """Today's rule of Ultralytics, and of Detectron2 and MMCV: each module's own parameters, by name and class."""
    groups = {"weight": [], "norm": [], "bias": []}
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            norm = isinstance(module, nn.modules.batchnorm._BatchNorm) or name.startswith("gate")
            groups["bias" if name == "bias" else "norm" if norm else "weight"].append(p)
    return [{"params": params, "weight_decay": 0.05 if name == "weight" else 0.0} for name, params in groups.items()]


@each_method
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("rule", [ultralytics, lambda model: cn.param_groups(model, weight_decay=0.05)])
def test_rules_that_ask_modules_for_their_own_parameters_meet_each_once(method, options, dims, rule):
    model = nn.Sequential(nn.Linear(4, 4), layer_of(method, options, dims), nn.Linear(4, 4))
    groups = [group for group in rule(model) if group["params"]]
    names_by_decay(model, groups)
    torch.optim.SGD(groups, lr=0.1)


@each_method
def test_loops_that_ask_for_attributes_meet_gamma_twice(method, options):
    """As documented: the layer shows its child's, and torch refuses what comes of it; a set of them is right."""
    layer = layer_of(method, options)
    met = [m.weight for m in layer.modules() if isinstance(getattr(m, "weight", None), nn.Parameter)]
    assert len(met) == 2
    assert met[0] is met[1] is layer.bn.weight
    with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
        torch.optim.SGD([{"params": met[:1]}, {"params": met[1:]}], lr=0.1)
