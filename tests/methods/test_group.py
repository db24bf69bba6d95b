from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from calibnorm.methods.group import GN, IN, LN
from calibnorm.ops import Step, normalize
from cases import errors, randn
from contract import batch
from oracles.group import gn
from tolerances import ORACLE

CASES = [(IN(), 4), (LN(), 1), (GN(), 4), (GN(groups=2), 2)]


def tensors():
    return {"weight": randn(4, seed=1, dtype=torch.float64), "bias": randn(4, seed=2, dtype=torch.float64)}


def ours(method, noise=None):
    def run(x, p):
        return normalize(x, Step(method, tuple(p), 1e-3, noise), None, tuple(p.values()))[0]

    return run


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(("method", "groups"), CASES, ids=str)
def test_equals_the_equations(method, groups, dims):
    found = errors(ours(method), lambda x, p: gn(x, p, groups, 1e-3), batch(dims, 0), tensors())
    assert max(found.values()) <= ORACLE, found


@pytest.mark.parametrize(("method", "groups"), CASES, ids=str)
def test_equals_torch(method, groups):
    def theirs(x, p):
        return F.group_norm(x, groups, p["weight"], p["bias"], 1e-3)

    found = errors(ours(method), theirs, batch(2, 0), tensors())
    assert max(found.values()) <= ORACLE, found


def test_instance_norm_and_layer_norm_of_torch():
    x, none = batch(2, 0), {}
    found = errors(ours(IN()), lambda x, p: F.instance_norm(x, eps=1e-3), x, none)
    found |= {
        f"ln {k}": v
        for k, v in errors(ours(LN()), lambda x, p: F.layer_norm(x, x.shape[1:], eps=1e-3), x, none).items()
    }
    assert max(found.values()) <= ORACLE, found


def test_noise_follows_the_standardization():
    def noisy(x, p):
        return gn(x, {}, 2, 1e-3) * 0.8 + 0.5

    found = errors(ours(GN(groups=2), (0.8, 0.5)), noisy, batch(2, 0), {})
    assert max(found.values()) <= ORACLE, found


def test_groups():
    assert [GN().groups_of(c) for c in (64, 24, 144, 7)] == [32, 8, 16, 1]
    with pytest.raises(ValueError, match="groups=3 does not divide 4 channels"):
        GN(groups=3).groups_of(4)
    with pytest.raises(ValueError, match="at least 1"):
        GN(groups=0)
    with pytest.raises(TypeError, match="integer"):
        GN(groups=2.0)
