from __future__ import annotations

import pytest
from torch.nn.functional import batch_norm, group_norm

from calibnorm.methods.bcn import BCN
from cases import errors
from contract import batch, passes, running_statistics, tensors_of
from oracles.bcn import bcn
from tolerances import ORACLE


@pytest.mark.parametrize("running", [False, True], ids=["train", "eval"])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    ("method", "groups"), [(BCN(), 4), (BCN(groups=2), 2), (BCN(groups=2, per_channel=True), 2)], ids=str
)
def test_equals_the_equations(method, groups, dims, running):
    fixed = running_statistics() if running else None
    ours = passes(method, statistics=fixed)
    found = errors(ours, lambda x, p: bcn(x, p, fixed, groups, 1e-3), batch(dims, 0), tensors_of(method))
    assert max(found.values()) <= ORACLE, found


def test_equals_two_layers_of_torch():
    method = BCN(groups=2, per_channel=True)

    def theirs(x, p):
        z = batch_norm(x, None, None, p["weight"], p["bias"], training=True, eps=1e-3)
        return group_norm(z, 2, p["channel_weight"], p["channel_bias"], 1e-3)

    found = errors(passes(method), theirs, batch(2, 0), tensors_of(method))
    assert max(found.values()) <= ORACLE, found


def test_parameters():
    assert {name: spec.shape for name, spec in BCN().parameters(64).items()} == {
        "channel_weight": (32,),
        "channel_bias": (32,),
    }
    assert BCN(groups=2, per_channel=True).parameters(64)["channel_bias"].shape == (64,)
    with pytest.raises(ValueError, match="groups=3 does not divide 64 channels"):
        BCN(groups=3).parameters(64)
