"""What every method's layer must do, against the method's oracle: one contract for test_bn, test_iebn and test_rbn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from calibnorm.methods import Method
from calibnorm.ops import Call, Statistics, Step, normalize
from cases import gradients, parameters, randn, randomize
from oracles import Pair, Running
from tolerances import ORACLE, error

Oracle = Callable[..., tuple[Tensor, Pair]]


def batch(dims: int, seed: int, rank2: bool = False) -> Tensor:
    """A float64 batch whose channels and instances differ in mean and spread."""
    shape = {1: (6, 4, 5), 2: (4, 4, 3, 5), 3: (3, 4, 2, 3, 2)}[dims]
    shape = shape[:2] if rank2 else shape
    x = randn(*shape, seed=seed, dtype=torch.float64)
    per_plane = randn(*shape[:2], *[1] * (len(shape) - 2), seed=seed + 1000, dtype=torch.float64)
    return x * (0.5 + per_plane.abs()) + 2 * per_plane


def passes(
    method: Method,
    *,
    eps: float = 1e-3,
    statistics: Statistics | None = None,
    noise: tuple[float, float] | None = None,
    relu: bool = False,
) -> Callable[[Tensor, Mapping[str, Tensor]], Tensor]:
    """A method's coefficient function between the passes, without a layer: a function of x and the tensors by name."""

    def run(x: Tensor, p: Mapping[str, Tensor]) -> Tensor:
        step = Step(method, tuple(p), eps, noise)
        return normalize(x, Call(step, statistics, tuple(p.values()), relu=relu))[0]

    return run


def tensors_of(method: Method, channels: int = 4) -> dict[str, Tensor]:
    """Random float64 values for gamma, beta and every tensor of the method."""
    shapes = {"weight": (channels,), "bias": (channels,)}
    shapes |= {name: spec.shape for name, spec in method.parameters(channels).items()}
    return {name: randn(*shape, seed=20 + i, dtype=torch.float64) for i, (name, shape) in enumerate(shapes.items())}


def running_statistics(channels: int = 4) -> Statistics:
    """Random float64 running mean and variance."""
    return randn(channels, seed=7, dtype=torch.float64), 0.5 + randn(channels, seed=8, dtype=torch.float64).abs()


def check_layer(
    layer_type: Callable[..., Any],
    oracle: Oracle,
    options: dict[str, Any] | None = None,
    oracle_options: dict[str, Any] | None = None,
    *,
    rank2: bool = False,
    eps: float = 1e-3,
    momentum: float | None = 0.3,
    affine: bool = True,
    track: bool = True,
    noise: tuple[float, float] | None = None,
    noise_in: str = "always",
) -> float:
    """Three steps of training, then eval: values, all gradients and running statistics; return the worst error."""
    layer = layer_type(
        4, eps, momentum, affine, track, dtype=torch.float64, noise=noise, noise_in=noise_in, **(options or {})
    )
    randomize(layer)
    dims = layer.dims
    running = None
    if track:
        running = Running(layer.bn.running_mean.clone(), layer.bn.running_var.clone(), momentum)
    found: dict[str, float] = {}
    for step, training in enumerate([True, True, True, False, False]):
        layer.train(training)
        x = batch(dims, seed=step, rank2=rank2).requires_grad_()
        noisy = noise if training or noise_in == "always" else None
        use_batch = training or running is None
        statistics = None if running is None or use_batch else (running.mean, running.var)
        expected, used = oracle(x, parameters(layer), statistics, eps=eps, noise=noisy, **(oracle_options or {}))
        before = x.detach().clone()
        actual = layer(x)
        assert torch.equal(x, before), "the input was modified"
        leaves = {"input": x, **parameters(layer)}
        dy = randn(*x.shape, seed=50 + step, dtype=torch.float64)
        ours, theirs = gradients(actual, leaves, dy), gradients(expected, leaves, dy)
        mode = "train" if training else "eval"
        found[f"{mode}{step} value"] = error(actual, expected)
        found |= {f"{mode}{step} d {name}": error(ours[name], theirs[name]) for name in leaves}
        if running is not None:
            if training:
                running.update(used, x.numel() // x.shape[1])
            assert int(layer.bn.num_batches_tracked) == running.batches
            found[f"{mode}{step} running_mean"] = error(layer.bn.running_mean, running.mean)
            found[f"{mode}{step} running_var"] = error(layer.bn.running_var, running.var)
    wrong = {name: e for name, e in found.items() if not e <= ORACLE}
    assert not wrong, wrong
    return max(found.values())


def check_functional(
    function: Callable[..., Tensor],
    oracle: Oracle,
    tensors: dict[str, Tensor],
    options: dict[str, Any] | None = None,
    oracle_options: dict[str, Any] | None = None,
    *,
    training: bool,
    noise: tuple[float, float] | None = None,
    dims: int = 2,
) -> float:
    """One call of a functional form: value, all gradients and running statistics; return the worst error."""
    x = batch(dims, seed=3).requires_grad_()
    leaves = {"input": x, **{name: t.clone().requires_grad_() for name, t in tensors.items()}}
    p = {name: t for name, t in leaves.items() if name != "input"}
    mean, var = randn(4, seed=7, dtype=torch.float64), 0.5 + randn(4, seed=8, dtype=torch.float64).abs()
    running = Running(mean.clone(), var.clone(), 0.3)
    statistics = None if training else (running.mean, running.var)
    expected, used = oracle(x, p, statistics, eps=1e-3, noise=noise, **(oracle_options or {}))
    if training:
        running.update(used, x.numel() // 4)
    actual = function(x, mean, var, training=training, momentum=0.3, eps=1e-3, noise=noise, **p, **(options or {}))
    dy = randn(*x.shape, seed=50, dtype=torch.float64)
    ours, theirs = gradients(actual, leaves, dy), gradients(expected, leaves, dy)
    found = {"value": error(actual, expected)} | {f"d {n}": error(ours[n], theirs[n]) for n in leaves}
    found |= {"running_mean": error(mean, running.mean), "running_var": error(var, running.var)}
    wrong = {name: e for name, e in found.items() if not e <= ORACLE}
    assert not wrong, wrong
    return max(found.values())
