from __future__ import annotations

import pytest
import torch

from calibnorm.methods.sn import SN
from calibnorm.ops import Step, normalize
from cases import errors, randn
from contract import batch
from oracles.sn import sn
from tolerances import ORACLE


@pytest.mark.parametrize("running", [False, True], ids=["train", "eval"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_equals_the_equations(dims, running):
    names = {"weight": 4, "bias": 4, "mean_weight": 3, "var_weight": 3}
    p = {name: randn(size, seed=i, dtype=torch.float64) for i, (name, size) in enumerate(names.items())}
    fixed = None
    if running:
        fixed = (randn(4, seed=7, dtype=torch.float64), 0.5 + randn(4, seed=8, dtype=torch.float64).abs())

    def ours(x, p):
        return normalize(x, Step(SN(), tuple(p), 1e-3, None), fixed, tuple(p.values()))[0]

    found = errors(ours, lambda x, p: sn(x, p, fixed, 1e-3), batch(dims, 0), p)
    assert max(found.values()) <= ORACLE, found


def test_starts_as_equal_parts():
    p = SN().parameters(4)
    assert [spec.create().tolist() for spec in p.values()] == [[1.0] * 3] * 2
