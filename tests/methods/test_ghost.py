from __future__ import annotations

import pytest

from calibnorm.methods.ghost import GhostBN
from cases import errors
from contract import batch, passes, running_statistics, tensors_of
from oracles.ghost import ghost
from tolerances import ORACLE


@pytest.mark.parametrize("running", [False, True], ids=["train", "eval"])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 3, 128])
def test_equals_the_equations(size, dims, running):
    method, fixed = GhostBN(size=size), running_statistics() if running else None
    ours = passes(method, statistics=fixed)
    found = errors(ours, lambda x, p: ghost(x, p, fixed, size, 1e-3), batch(dims, 0), tensors_of(method))
    assert max(found.values()) <= ORACLE, found


@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (2.0, TypeError), (True, TypeError)])
def test_refuses_other_sizes(size, error):
    with pytest.raises(error, match="size="):
        GhostBN(size=size)
