from __future__ import annotations

import pytest
import torch.nn.functional as F

from calibnorm.methods.group import GN, IN, LN
from cases import errors
from contract import batch, passes, tensors_of
from oracles.group import gn
from tolerances import ORACLE

CASES = [(IN(), 4), (LN(), 1), (GN(), 4), (GN(groups=2), 2)]


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(("method", "groups"), CASES, ids=str)
def test_equals_the_equations(method, groups, dims):
    found = errors(passes(method), lambda x, p: gn(x, p, groups, 1e-3), batch(dims, 0), tensors_of(method))
    assert max(found.values()) <= ORACLE, found


@pytest.mark.parametrize(("method", "groups"), CASES, ids=str)
def test_equals_torch(method, groups):
    def theirs(x, p):
        return F.group_norm(x, groups, p["weight"], p["bias"], 1e-3)

    found = errors(passes(method), theirs, batch(2, 0), tensors_of(method))
    assert max(found.values()) <= ORACLE, found


def test_instance_norm_and_layer_norm_of_torch():
    x, none = batch(2, 0), {}
    found = errors(passes(IN()), lambda x, p: F.instance_norm(x, eps=1e-3), x, none)
    found |= {
        f"ln {k}": v
        for k, v in errors(passes(LN()), lambda x, p: F.layer_norm(x, x.shape[1:], eps=1e-3), x, none).items()
    }
    assert max(found.values()) <= ORACLE, found


def test_noise_follows_the_standardization():
    def noisy(x, p):
        return gn(x, {}, 2, 1e-3) * 0.8 + 0.5

    found = errors(passes(GN(groups=2), noise=(0.8, 0.5)), noisy, batch(2, 0), {})
    assert max(found.values()) <= ORACLE, found


def test_groups():
    assert [GN().groups_of(c) for c in (64, 24, 144, 7)] == [32, 8, 16, 1]
    with pytest.raises(ValueError, match="groups=3 does not divide 4 channels"):
        GN(groups=3).groups_of(4)
    with pytest.raises(ValueError, match="at least 1"):
        GN(groups=0)
    with pytest.raises(TypeError, match="integer"):
        GN(groups=2.0)
