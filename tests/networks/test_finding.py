"""The one walk over a network's layers, and the table that its readers print."""

from __future__ import annotations

import torch
from torch import nn

import calibnorm as cn
from calibnorm.networks.finding import find_layers, find_norms
from calibnorm.networks.tables import aligned


def test_layers_are_norms_and_what_scales_alone():
    net = nn.Sequential(nn.Conv2d(3, 3, 1), cn.SE2d(3, alone=True), nn.Sequential(nn.BatchNorm2d(3), cn.RBN2d(3)))
    net.again = net[1]
    assert [(e.name, e.names) for e in find_layers(net)] == [
        ("1", ["1", "again"]),
        ("2.0", ["2.0"]),
        ("2.1", ["2.1"]),
    ]
    assert [e.name for e in find_norms(net)] == ["2.0", "2.1"]
    assert find_norms(net[1]) == []
    assert find_layers(net[1])[0].title == "(model)"


def test_gates_of_se_alone_are_grouped_too():
    se = cn.SE2d(4, alone=True)
    groups = cn.param_groups(nn.Sequential(nn.Conv2d(3, 4, 1), se), weight_decay=0.1, decay_norm_and_bias=True)
    free = {id(p) for p in groups[1]["params"]}
    assert free == {id(p) for name, p in se.gates().items() if not se.method.parameters(4)[name].decays}
    assert free


def test_tables():
    text = aligned(("name", "share"), [("a", 0.123456), ("bcd", 12), ("e", None)], ("3 rows", 12.5))
    assert text.splitlines() == [
        "name     share",
        "--------------",
        "a       0.1235",
        "bcd         12",
        "e",
        "--------------",
        "3 rows    12.5",
    ]
    assert aligned(("a", "b"), []).splitlines() == ["a  b", "----"]


def test_old_places_still_import():
    from calibnorm import conversion, networks

    for name in networks.__all__:
        assert getattr(conversion, name) is getattr(networks, name) is getattr(cn, name)
    assert torch.is_tensor(cn.inspect.evaluating.Moments().mean)
