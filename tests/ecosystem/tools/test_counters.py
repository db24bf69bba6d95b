"""Tools that count: thop, torchsummary and ptflops."""

from __future__ import annotations

import pytest

import calibnorm as cn
from ecosystem.nets import LAYERS, images, network

thop = pytest.importorskip("thop", reason="make ecosystem installs it")
torchsummary = pytest.importorskip("torchsummary", reason="make ecosystem installs it")
ptflops = pytest.importorskip("ptflops", reason="make ecosystem installs it")

pytestmark = [pytest.mark.nightly, pytest.mark.parametrize("norm", LAYERS)]

CONV_AND_FC = 8 * 3 * 9 * 64 + 2 * 8 * 8 * 9 * 64 + 8 * 5
"""Multiply-adds of one 8 x 8 image in `Net`."""


def numbers(model) -> int:
    return sum(p.numel() for p in model.parameters())


def gates(model) -> int:
    return sum(g.numel() for m in model.modules() if isinstance(m, tuple(LAYERS)) for g in m.gates().values())


def test_thop_needs_to_be_told_of_a_layer(norm):
    from thop.vision.basic_hooks import count_normalization

    model = network(norm).eval()
    operations, parameters = thop.profile(model, (images(n=1),), verbose=False)
    assert parameters == numbers(model) - gates(model)  # it looks into leaves alone: the child, not the layer's own
    told, parameters = thop.profile(model, (images(n=1),), custom_ops={norm: count_normalization}, verbose=False)
    assert parameters == numbers(model)
    assert told >= operations >= CONV_AND_FC
    assert model(images()).isfinite().all()


def test_torchsummary_sees_weight_and_bias_alone(norm, capsys):
    model = network(norm).eval()
    torchsummary.summary(model, (3, 8, 8), device="cpu")
    said = capsys.readouterr().out
    total = int(
        next(line for line in said.splitlines() if line.startswith("Total params")).split()[-1].replace(",", "")
    )
    assert norm.__name__ in said
    assert total == numbers(model) - gates(model) + 3 * 2 * 8  # no gates, and gamma and beta twice; cn.summary has all
    assert sum(row.gates for row in cn.summary(model)) == gates(model)


@pytest.mark.parametrize("backend", ["pytorch", "aten"])
def test_ptflops(norm, backend):
    model = network(norm).eval()
    macs, parameters = ptflops.get_model_complexity_info(
        model, (3, 8, 8), as_strings=False, print_per_layer_stat=False, backend=backend
    )
    assert parameters == numbers(model)
    assert macs >= CONV_AND_FC
    assert model(images()).isfinite().all()
