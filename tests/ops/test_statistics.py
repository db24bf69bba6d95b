from __future__ import annotations

import pytest
import torch

from calibnorm.ops import batch_statistics, update_running
from cases import randn
from oracles import Running, batch_moments
from tolerances import ORACLE, error, reduction, rounding


def test_statistics_of_planes_are_those_of_the_batch():
    x = randn(5, 3, 4, 2, dtype=torch.float64, mean=2.0)
    mean, var = batch_statistics(x.mean((2, 3)), x.var((2, 3), unbiased=False))
    expected_mean, expected_var = batch_moments(x)
    assert error(mean, expected_mean) <= ORACLE
    assert error(var, expected_var) <= ORACLE


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_large_mean_in_float32(seed):
    """The two-step mean is off by half a unit in the last place; torch's alone, at seed 1, by more than one."""
    m = randn(1000, 2, mean=1e4, seed=seed)
    mean, var = batch_statistics(m, torch.zeros_like(m))
    assert (mean.double() - m.double().mean(0)).abs().max() <= 1e4 * torch.finfo(torch.float32).eps / 2
    assert error(var, m.double().var(0, unbiased=False)) <= reduction(torch.float32, 1000)


def test_variance_at_a_large_mean_in_float32():
    """Around a mean that is rounded to float32 it is off by up to 1e-3."""
    m = randn(1000, 8, mean=1e6)
    _, var = batch_statistics(m, torch.zeros_like(m))
    assert error(var, m.double().var(0, unbiased=False)) <= reduction(torch.float32, 1000, slack=0.5)


@pytest.mark.parametrize("value", [3.3, 1e6 + 0.1, 1e18])
def test_equal_means_have_no_negative_variance(value):
    m = torch.full((1001, 3), value)
    assert (batch_statistics(m, torch.zeros_like(m))[1] >= 0).all()


@pytest.mark.parametrize("momentum", [0.0, 0.1, 1.0, torch.tensor(0.25)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_update_running(momentum, dtype):
    mean, var = randn(3, seed=1, dtype=torch.float64), randn(3, seed=2, dtype=torch.float64).abs()
    running_mean, running_var = torch.zeros(3, dtype=dtype), torch.ones(3, dtype=dtype)
    addresses = running_mean.data_ptr(), running_var.data_ptr()
    expected = Running(torch.zeros(3).double(), torch.ones(3).double(), float(momentum))
    for _ in range(2):
        update_running(running_mean, running_var, mean, var, momentum, count=7)
        expected.update((mean, var), 7)
    assert (running_mean.data_ptr(), running_var.data_ptr()) == addresses
    assert error(running_mean, expected.mean) <= max(rounding(dtype, 4), ORACLE)
    assert error(running_var, expected.var) <= max(rounding(dtype, 4), ORACLE)


def test_update_running_keeps_no_graph():
    mean = torch.ones(2, requires_grad=True)
    running_mean, running_var = torch.zeros(2), torch.ones(2)
    update_running(running_mean, running_var, mean, mean, 0.1, 4)
    assert not running_mean.requires_grad
    assert not running_var.requires_grad


@pytest.mark.parametrize("momentum", [0.1, torch.tensor(0.25)], ids=str)
def test_update_running_by_a_count_in_a_tensor(momentum):
    """As processes share it; where nobody has a value, the batch is counted and nothing moves."""
    mean, var = randn(3, seed=1, dtype=torch.float64), randn(3, seed=2, dtype=torch.float64).abs()
    moved, expected = ((torch.zeros(3), torch.ones(3), torch.tensor(4)) for _ in range(2))
    update_running(*moved[:2], mean, var, momentum, torch.tensor(7.0).double(), moved[2])
    update_running(*expected[:2], mean, var, momentum, 7, expected[2])
    assert all(error(a, b) <= rounding(torch.float32, 4) for a, b in zip(moved, expected, strict=True))
    before = [t.clone() for t in moved]
    update_running(*moved[:2], mean, var, momentum, torch.tensor(0.0).double(), moved[2])
    assert all(torch.equal(a, b) for a, b in zip(moved[:2], before[:2], strict=True))
    assert moved[2] == before[2] + 1
