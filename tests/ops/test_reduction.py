from __future__ import annotations

import pytest
import torch

from calibnorm.methods import BN, RBN
from calibnorm.methods.ghost import GhostBN
from calibnorm.methods.group import IN
from calibnorm.ops import statistics as under_test
from calibnorm.ops import use_backend
from calibnorm.ops.statistics import GhostBatches, WholeBatch, reduction_of
from cases import randn
from contract import batch, passes, tensors_of
from tolerances import ORACLE, error


@pytest.mark.parametrize("reduction", [WholeBatch(), GhostBatches(1), GhostBatches(2), GhostBatches(9)], ids=str)
def test_own_gradient_is_that_of_forward(reduction):
    mean_NC = (3.0 + randn(5, 4, dtype=torch.float64)).requires_grad_()
    var_NC = randn(5, 4, seed=1, dtype=torch.float64).abs().requires_grad_()
    mean, var = reduction.forward(mean_NC, var_NC)
    d_mean, d_var = (randn(*mean.shape, seed=s, dtype=torch.float64) for s in (2, 3))
    expected = torch.autograd.grad([mean, var], [mean_NC, var_NC], [d_mean, d_var])
    found = reduction.vjp(mean_NC.detach(), mean.detach(), d_mean, d_var)
    assert max(error(ours, theirs) for ours, theirs in zip(found, expected, strict=True)) <= ORACLE


@pytest.mark.parametrize("relu", [False, True], ids=["plain", "relu"])
@pytest.mark.parametrize("method", [BN(), RBN(), GhostBN(size=2)], ids=str)
def test_backward_reduces_nothing_again(method, relu, monkeypatch):
    """A collective in forward must not run twice."""
    calls = []
    whole = under_test.batch_statistics
    monkeypatch.setattr(under_test, "batch_statistics", lambda m, v: calls.append(1) or whole(m, v))
    p = {name: t.requires_grad_() for name, t in tensors_of(method).items()}
    x = batch(2, 0).requires_grad_()
    with use_backend("reference"):
        y = passes(method, relu=relu)(x, p)
        before = len(calls)
        assert before > 0
        y.sum().backward()
    assert len(calls) == before


def test_no_statistics_of_a_batch_where_none_enter():
    assert reduction_of(IN()) is None
    assert reduction_of(BN()) == WholeBatch()
    assert reduction_of(GhostBN(size=3)) == GhostBatches(3)
