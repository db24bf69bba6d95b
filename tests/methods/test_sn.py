from __future__ import annotations

import pytest

from calibnorm.methods.sn import SN
from cases import errors
from contract import batch, passes, running_statistics, tensors_of
from oracles.sn import sn
from tolerances import ORACLE


@pytest.mark.parametrize("running", [False, True], ids=["train", "eval"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_equals_the_equations(dims, running):
    fixed = running_statistics() if running else None
    ours = passes(SN(), statistics=fixed)
    found = errors(ours, lambda x, p: sn(x, p, fixed, 1e-3), batch(dims, 0), tensors_of(SN()))
    assert max(found.values()) <= ORACLE, found


def test_starts_as_equal_parts():
    p = SN().parameters(4)
    assert [spec.create().tolist() for spec in p.values()] == [[1.0] * 3] * 2
