from __future__ import annotations

import pytest
import timm
import torch
from torch.func import functional_call

from calibnorm.methods.frn import FRN
from calibnorm.ops import Step, normalize
from cases import errors, randn
from contract import batch
from oracles import gamma_beta, planes
from tolerances import ORACLE, rounding

P = {name: randn(4, seed=i, dtype=torch.float64) for i, name in enumerate(("weight", "bias"))}


def frn(x, p):
    """Eq. 1 of the paper, pixel by pixel."""
    gamma, beta = gamma_beta(p, x)
    return gamma * x / torch.sqrt((x**2).mean(planes(x), keepdim=True) + 1e-6) + beta


def ours(x, p):
    return normalize(x, Step(FRN(), tuple(p), 1e-6, None), None, tuple(p.values()))[0]


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_equals_the_equations(dims):
    found = errors(ours, frn, batch(dims, 0), P)
    assert max(found.values()) <= ORACLE, found


def test_equals_timm():
    """timm takes the mean square in float32, whatever the input."""
    layer = timm.layers.FilterResponseNormTlu2d(4, apply_act=False, eps=1e-6).double()
    found = errors(ours, lambda x, p: functional_call(layer, dict(p), (x,)), batch(2, 0), P)
    assert max(found.values()) <= rounding(torch.float32), found
