from __future__ import annotations

import pytest
import torch

from calibnorm.methods.an import AN
from cases import errors, randn
from contract import batch, passes, running_statistics, tensors_of
from oracles.an import an
from tolerances import ORACLE


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "mixtures_alone"])
@pytest.mark.parametrize("squeeze", ["rsd", "mean"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_equals_the_equations(dims, squeeze, affine):
    method = AN(mixtures=3, squeeze=squeeze)
    p = {name: t for name, t in tensors_of(method).items() if affine or name not in ("weight", "bias")}
    found = errors(passes(method), lambda x, p: an(x, p, None, 1e-3, squeeze), batch(dims, 0), p)
    assert max(found.values()) <= ORACLE, found


def test_running_statistics_of_features_and_attention():
    method, fixed = AN(mixtures=3), running_statistics()
    attention = randn(3, seed=11, dtype=torch.float64), 0.5 + randn(3, seed=12, dtype=torch.float64).abs()
    joined = tuple(torch.cat(pair) for pair in zip(fixed, attention, strict=True))
    found = errors(
        passes(method, statistics=joined),
        lambda x, p: an(x, p, fixed, 1e-3, "rsd", attention),
        batch(2, 0),
        tensors_of(method),
    )
    assert max(found.values()) <= ORACLE, found


def test_starts_around_one_and_zero():
    specs = AN().parameters(1000)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weight, bias = (specs[f"mixture_{name}"].create() for name in ("weight", "bias"))
    assert weight.shape == bias.shape == (10, 1000)
    # 10,000 draws: the mean is known to 0.001, the deviation to 0.0007; five of these.
    assert abs(weight.mean() - 1) <= 5e-3
    assert abs(bias.mean()) <= 5e-3
    assert max(abs(weight.std() - 0.1), abs(bias.std() - 0.1)) <= 3.5e-3
    assert AN().initial_gate(4) is None


@pytest.mark.parametrize("options", [{"mixtures": 0}, {"squeeze": "max"}], ids=str)
def test_refuses_other_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        AN(**options)
