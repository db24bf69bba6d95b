from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from calibnorm.methods import BN, RBN
from calibnorm.methods.ghost import GhostBN
from calibnorm.methods.group import IN
from calibnorm.ops import statistics as under_test
from calibnorm.ops import use_backend
from calibnorm.ops.statistics import GhostBatches, WholeBatch, reduction_of
from calibnorm.ops.synchronized import Synchronized
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


@pytest.fixture
def synchronized(tmp_path):
    """Of a group of one process, with planes of 6 pixels, 3 channels and an extra statistic."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield Synchronized(dist.group.WORLD, 3, 6)
    dist.destroy_process_group()


def test_synchronized_over_one_process_is_the_whole_batch(synchronized):
    mean_NC = (1e6 + randn(5, 4, dtype=torch.float64)).requires_grad_()
    var_NC = randn(5, 4, seed=1, dtype=torch.float64).abs().requires_grad_()
    found, expected = synchronized.forward(mean_NC, var_NC), WholeBatch().forward(mean_NC, var_NC)
    assert max(error(ours, theirs) for ours, theirs in zip(found, expected, strict=True)) <= ORACLE
    assert synchronized.values.tolist() == [30.0, 5.0]
    cotangents = [randn(4, seed=s, dtype=torch.float64) for s in (2, 3)]
    wanted = torch.autograd.grad(expected, [mean_NC, var_NC], cotangents)
    by_itself = synchronized.vjp(mean_NC.detach(), found[0].detach(), *cotangents)
    by_autograd = torch.autograd.grad(found, [mean_NC, var_NC], cotangents)
    for ours in (by_itself, by_autograd):
        assert max(error(a, b) for a, b in zip(ours, wanted, strict=True)) <= ORACLE


def test_synchronized_is_differentiable_twice(synchronized):
    moments = [randn(4, 4, seed=s, dtype=torch.float64).requires_grad_() for s in (0, 1)]
    assert torch.autograd.gradcheck(synchronized.forward, moments)
    assert torch.autograd.gradgradcheck(synchronized.forward, moments)


def test_no_statistics_of_a_batch_where_none_enter():
    assert reduction_of(IN()) is None
    assert reduction_of(BN()) == WholeBatch()
    assert reduction_of(GhostBN(size=3)) == GhostBatches(3)
