"""Ghost batches in C are what BatchNorm makes of every one by itself."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import calibnorm as cn
from calibnorm.ops.cpu import ghosts, passes
from cases import randn, randomize
from tolerances import error

pytestmark = pytest.mark.skipif(passes.unavailable() is not None, reason=str(passes.unavailable()))


def expected(layer: nn.Module, x: Tensor, residual: Tensor | None, size: int) -> Tensor:
    """torch's BatchNorm on each ghost batch, its statistics left out."""
    parts = [F.batch_norm(part, None, None, layer.weight, layer.bias, True, 0.0, 1e-5) for part in x.split(size)]
    y = torch.cat(parts)
    return torch.relu(y if residual is None else y + residual)


@pytest.mark.parametrize("noise", [None, (0.8, 0.5)])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("size", [2, 3, 7, 100])
@pytest.mark.parametrize("shape", [(7, 5, 4, 3), (8, 17, 1, 1), (9, 3, 40, 20)], ids=str)
def test_values_and_gradients(
    shape: tuple[int, ...],
    size: int,
    with_residual: bool,
    noise: tuple[float, float] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called = []
    for name in ("coefficients", "gradients"):
        real = getattr(ghosts.by_hand, name)
        monkeypatch.setattr(ghosts.by_hand, name, lambda *a, real=real, name=name: called.append(name) or real(*a))
    layer = randomize(cn.GhostBN2d(shape[1], size=size, noise=noise, dtype=torch.float64))
    x = randn(*shape, seed=1).double().requires_grad_()
    residual = randn(*shape, seed=2).double().requires_grad_() if with_residual else None
    if shape[0] % size == 1 and shape[2:] == (1, 1):
        with pytest.raises(ValueError, match="one value"):
            layer(x, residual, relu=True)
        return
    y = layer(x, residual, relu=True)
    wanted_layer = copy.deepcopy(layer)
    leaves = [t for t in (x, residual, *layer.parameters()) if t is not None]
    dy = randn(*shape, seed=3).double()
    found = torch.autograd.grad(y, leaves, dy)
    ghost_batches = -(-shape[0] // size)
    assert called.count("gradients") == ghost_batches
    if noise is None:
        z = expected(wanted_layer, x, residual, size)
    else:
        with cn.use_backend("reference"):
            z = wanted_layer(x, residual, relu=True)
    leaves = [t for t in (x, residual, *wanted_layer.parameters()) if t is not None]
    assert error(y, z) < 1e-10
    for ours, theirs in zip(found, torch.autograd.grad(z, leaves, dy), strict=True):
        assert error(ours, theirs) < 1e-9


def test_running_statistics_are_those_of_every_ghost_batch() -> None:
    layer = cn.GhostBN2d(4, size=3)
    plain = nn.BatchNorm2d(4)
    with cn.use_backend("reference"):
        reference = copy.deepcopy(layer)
        reference(randn(7, 4, 5, 5))
    layer(randn(7, 4, 5, 5))
    torch.testing.assert_close(layer.bn.running_mean, reference.bn.running_mean)
    torch.testing.assert_close(layer.bn.running_var, reference.bn.running_var)
    assert not torch.equal(layer.bn.running_mean, plain.running_mean)


def test_frozen_statistics_are_those_of_one_whole_batch() -> None:
    layer = randomize(cn.GhostBN2d(4, size=2)).train()
    cn.freeze_stats(layer)
    x = randn(5, 4, 3, 3).requires_grad_()
    assert error(layer(x), layer.eval()(x)) < 1e-6
