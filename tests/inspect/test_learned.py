"""The table of learned tensors."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import calibnorm as cn
from cases import generator


def network():
    """Norms of every kind: two with gates, a plain one between them, SE alone and a method without gates."""
    net = nn.Sequential(cn.IEBN2d(6), nn.BatchNorm2d(6), cn.RBN2d(6), cn.SE2d(6, alone=True, reduction=2), cn.IN2d(6))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator(3)))
    return net


def test_against_the_tensors_themselves():
    net = network()
    rows = cn.inspect.learned(net)
    found = {(row.layer, row.depth, row.quantity): row for row in rows}
    tensors = {
        (name, int(name) + 1, gate): value.detach().double().flatten()
        for name, layer in net.named_children()
        if name != "1"
        for gate, value in layer.gates().items()
    }
    assert list(found) == list(tensors)
    assert {key[2] for key in found if key[0] == "2"} == {"center_weight", "scale_weight", "scale_bias"}
    for key, value in tensors.items():
        row = found[key]
        assert row.values == value.numel()
        p10, p90 = torch.quantile(value, torch.tensor([0.1, 0.9], dtype=value.dtype)).tolist()
        expected = (value.mean().item(), value.std(correction=0).item(), p10, p90)
        assert (row.mean, row.std, row.p10, row.p90) == pytest.approx(expected, rel=1e-12)


def test_where_they_started():
    net = nn.Sequential(cn.IEBN2d(4, init=(0.5, -2.0)), cn.RBN1d(4), cn.SE3d(4))
    rows = cn.inspect.learned(net)
    started = {(row.layer, row.quantity): row.initial for row in rows}
    assert started[("0", "gate_weight")] == 0.5
    assert started[("0", "gate_bias")] == -2.0
    assert started[("1", "scale_bias")] == 1.0
    assert all(initial is None for (layer, _), initial in started.items() if layer == "2")
    assert all(row.mean == row.p10 == row.p90 == row.initial for row in rows if row.layer != "2")


def test_nothing_is_there_to_read():
    assert cn.inspect.learned(nn.Sequential(nn.BatchNorm2d(3), cn.GN2d(4, groups=2))) == []
    text = str(cn.inspect.learned(nn.Linear(2, 2)))
    assert text.split()[:9] == ["layer", "depth", "quantity", "values", "initial", "mean", "std", "p10", "p90"]


def test_a_shared_layer_and_a_root():
    layer = cn.IEBN2d(3)
    assert {row.layer for row in cn.inspect.learned(layer)} == {"(model)"}
    assert [row.depth for row in cn.inspect.learned(nn.Sequential(nn.BatchNorm2d(3), layer, layer))] == [2, 2]


def test_rows_are_plain():
    rows = cn.inspect.learned(network())
    assert json.loads(json.dumps(rows.to_dicts())) == rows.to_dicts()
    assert repr(rows) == str(rows)
    assert [line.split()[0] for line in str(rows).splitlines()[2:]] == [row.layer for row in rows]


def test_no_module():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, not str"):
        cn.inspect.learned("resnet18")
