from __future__ import annotations

import pytest
import torch

from calibnorm.methods.brn import BRN
from cases import errors
from contract import batch, passes, running_statistics, tensors_of
from oracles.bn import bn
from oracles.brn import brn
from tolerances import ORACLE

METHOD = BRN()


def with_running(function):
    """A function of x and the learnable tensors alone, with running statistics among the tensors."""
    mean, var = running_statistics()
    return lambda x, p: function(x, {**p, "running_mean": mean, "running_var": var})


@pytest.mark.parametrize("noise", [None, (0.8, 0.5)], ids=["clean", "noise"])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(("r_max", "d_max"), [(3.0, 5.0), (1.2, 0.3)], ids=["open", "clipped"])
def test_equals_the_equations(r_max, d_max, dims, noise):
    ours = with_running(passes(BRN(r_max=r_max, d_max=d_max), noise=noise))
    theirs = with_running(lambda x, p: brn(x, p, r_max, d_max, 1e-3, noise))
    found = errors(ours, theirs, batch(dims, 0), tensors_of(METHOD))
    assert max(found.values()) <= ORACLE, found


def test_at_inference_is_batch_norm():
    fixed = running_statistics()
    ours = passes(METHOD, statistics=fixed)
    found = errors(ours, lambda x, p: bn(x, p, fixed, eps=1e-3)[0], batch(2, 0), tensors_of(METHOD))
    assert max(found.values()) <= ORACLE, found


@pytest.mark.parametrize(
    ("batches", "r_max", "d_max"),
    [
        (0, 1.0, 0.0),
        (5000, 1.0, 0.0),
        (15_000, 1 + 2 * 10 / 35, 2.5),
        (25_000, 1 + 2 * 20 / 35, 5.0),
        (10**6, 3.0, 5.0),
    ],
)
def test_limits_open_with_the_batches(batches, r_max, d_max):
    count = torch.tensor(batches)
    ours = with_running(lambda x, p: passes(METHOD)(x, {**p, "num_batches_tracked": count}))
    theirs = with_running(lambda x, p: brn(x, p, r_max, d_max, 1e-3, None))
    found = errors(ours, theirs, batch(2, 0), tensors_of(METHOD))
    assert max(found.values()) <= ORACLE, found


@pytest.mark.parametrize("options", [{"r_max": 0.5}, {"d_max": -1.0}, {"start": -1}, {"d_batches": 5000}], ids=str)
def test_refuses_limits_that_cannot_open(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        BRN(**options)
