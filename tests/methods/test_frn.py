from __future__ import annotations

import pytest
import timm
import torch
from torch.func import functional_call

from calibnorm.methods.frn import FRN
from cases import errors
from contract import batch, passes, tensors_of
from oracles import gamma_beta, planes
from tolerances import ORACLE, rounding

OURS, P = passes(FRN(), eps=1e-6), tensors_of(FRN())


def frn(x, p):
    """Eq. 1 of the paper, pixel by pixel."""
    gamma, beta = gamma_beta(p, x)
    return gamma * x / torch.sqrt((x**2).mean(planes(x), keepdim=True) + 1e-6) + beta


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_equals_the_equations(dims):
    found = errors(OURS, frn, batch(dims, 0), P)
    assert max(found.values()) <= ORACLE, found


def test_equals_timm():
    """timm takes the mean square in float32, whatever the input."""
    layer = timm.layers.FilterResponseNormTlu2d(4, apply_act=False, eps=1e-6).double()
    found = errors(OURS, lambda x, p: functional_call(layer, dict(p), (x,)), batch(2, 0), P)
    assert max(found.values()) <= rounding(torch.float32), found
