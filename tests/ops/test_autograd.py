"""The one autograd.Function: its gradient, that gradient's gradient, and what it keeps in memory."""

from __future__ import annotations

import pytest
import torch

from calibnorm.methods import BN, IEBN, RBN
from calibnorm.ops import Call, Step, dispatch, normalize, reference
from calibnorm.ops.autograd import differentiable
from cases import gradients, randn
from oracles.iebn import iebn
from tolerances import ORACLE, error, reduction

METHODS = [
    BN(),
    IEBN(),
    IEBN(operator="fc", position="both", activation="tanh", reduction=2),
    IEBN(operator="identity", position="beta"),
    RBN(),
    RBN(center_stat="std", scale_stat="std", restrict="softsign"),
]
each_method = pytest.mark.parametrize("method", METHODS, ids=str)
each_source = pytest.mark.parametrize("given", [False, True], ids=["batch", "running"])


def case(method, given, shape=(3, 4, 3, 2), mean=1.0, dtype=torch.float64):
    x = randn(*shape, dtype=dtype, mean=mean)
    specs = {"weight": (shape[1],), "bias": (shape[1],)} | {
        name: spec.shape for name, spec in method.parameters(shape[1]).items()
    }
    tensors = [randn(*size, seed=10 + i, dtype=dtype) for i, size in enumerate(specs.values())]
    statistics = None
    if given:
        statistics = randn(shape[1], seed=5, dtype=dtype), randn(shape[1], seed=6, dtype=dtype).abs() + 0.5
    leaves = {"x": x.requires_grad_()} | {n: t.requires_grad_() for n, t in zip(specs, tensors, strict=True)}
    return leaves, Step(method, tuple(specs), 1e-3, (0.8, 0.5)), statistics


def run(function, leaves, step, statistics):
    return function(leaves["x"], Call(step, statistics, tuple(t for name, t in leaves.items() if name != "x")))


@each_method
@each_source
def test_fused_gradient_is_that_of_the_plain_operations(method, given):
    leaves, step, statistics = case(method, given)
    y, used = run(normalize, leaves, step, statistics)
    expected, expected_used = run(differentiable, leaves, step, statistics)
    assert "_Normalize" in type(y.grad_fn).__name__
    dy = randn(*y.shape, seed=3, dtype=y.dtype)
    ours, theirs = gradients(y, leaves, dy), gradients(expected, leaves, dy)
    assert error(y, expected) <= ORACLE
    assert all(error(ours[name], theirs[name]) <= ORACLE for name in leaves)
    assert all(error(a, b) <= ORACLE for a, b in zip(used, expected_used, strict=True))
    assert not any(t.requires_grad for t in used)


@each_method
@each_source
def test_double_backward_is_that_of_the_plain_operations(method, given):
    leaves, step, statistics = case(method, given)
    results = []
    for function in (normalize, differentiable):
        y, _ = run(function, leaves, step, statistics)
        dy = randn(*y.shape, seed=3, dtype=y.dtype).requires_grad_()
        first = torch.autograd.grad(y, leaves.values(), dy, create_graph=True)
        penalty = sum(g.square().sum() for g in first)
        results.append([*first, *torch.autograd.grad(penalty, [*leaves.values(), dy], allow_unused=True)])
    for a, b in zip(*results, strict=True):
        assert (a is None) == (b is None)
        assert a is None or error(a, b) <= ORACLE


def test_third_derivative():
    leaves, step, _ = case(IEBN(), False, shape=(2, 1, 2, 2))
    results = []
    for function in (normalize, differentiable):
        out, _ = run(function, leaves, step, None)
        for _ in range(3):
            (out,) = torch.autograd.grad(out.square().sum(), leaves["x"], create_graph=True)
        results.append(out)
    assert error(*results) <= ORACLE


@pytest.mark.parametrize("mean", [0.0, 1e2, 1e4])
def test_gradient_at_a_large_mean(mean):
    """float32 gradients against the float64 oracle on the same input; g_hat's own gradient grows with the mean."""
    method = IEBN()
    leaves, step, _ = case(method, False, shape=(8, 4, 8, 8), mean=mean, dtype=torch.float32)
    leaves["gate_weight"] = (leaves["gate_weight"] / max(mean, 1.0)).detach().requires_grad_()
    exact = {name: t.detach().double().requires_grad_() for name, t in leaves.items()}
    y, _ = run(normalize, leaves, step, None)
    p = {name: t for name, t in exact.items() if name != "x"}
    expected, _ = iebn(exact["x"], p, eps=1e-3, noise=(0.8, 0.5))
    dy = randn(*y.shape, seed=3)
    ours, theirs = gradients(y, leaves, dy), gradients(expected, exact, dy.double())
    bound = reduction(torch.float32, 8 * 8 * 8)
    assert all(error(ours[name], theirs[name]) <= bound for name in leaves)


@each_method
def test_only_x_is_kept(method):
    """Memory: beside x itself, only (N, C) and (C,) numbers are saved for backward."""
    leaves, step, _ = case(method, False, shape=(2, 4, 16, 16))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        run(normalize, leaves, step, None)
    large = [t for t in saved if t.numel() > 64]
    assert [t.data_ptr() for t in large] == [leaves["x"].data_ptr()]


@each_method
@each_source
@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1, 1)], ids=str)
@pytest.mark.parametrize("end", ["none", "residual", "relu", "relu and residual"])
def test_one_pixel(method, given, shape, end):
    leaves, step, statistics = case(method, given, shape=shape)
    tensors = tuple(t for name, t in leaves.items() if name != "x")
    residual = randn(*shape, seed=7, dtype=torch.float64).requires_grad_() if "residual" in end else None
    wanted = leaves if residual is None else {**leaves, "residual": residual}
    dy = randn(*shape, seed=3, dtype=torch.float64)
    results = []
    for function in (normalize, differentiable):
        y, used = function(leaves["x"], Call(step, statistics, tensors, residual, "relu" in end))
        results.append([y, *used, *gradients(y, wanted, dy).values()])
    assert all(error(a, b) <= ORACLE for a, b in zip(*results, strict=True))


@each_method
def test_one_pixel_saves_x_alone(method):
    """The moments would be as many numbers as x has, in float64: nn.BatchNorm saves as little."""
    leaves, step, _ = case(method, False, shape=(64, 4), dtype=torch.float32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        run(normalize, leaves, step, None)
    assert [t.data_ptr() for t in saved if t.numel() > 16] == [leaves["x"].data_ptr()]


def test_one_pixel_frozen_x():
    leaves, step, _ = case(IEBN(), False, shape=(5, 4))
    expected = gradients(run(normalize, leaves, step, None)[0], leaves, torch.ones(5, 4).double())
    leaves["x"] = leaves["x"].detach()
    run(normalize, leaves, step, None)[0].sum().backward()
    assert all(error(t.grad, expected[name]) <= ORACLE for name, t in leaves.items() if name != "x")


def test_backward_twice_needs_retain_graph():
    leaves, step, _ = case(BN(), False)
    y, _ = run(normalize, leaves, step, None)
    y.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()


def test_backward_runs_two_passes(monkeypatch):
    """BatchNorm's memory traffic: one pass of sums and one that writes; none where x needs no gradient."""
    calls = []

    class Counting:
        def __getattr__(self, name):
            return lambda *args: calls.append(name) or getattr(reference, name)(*args)

    monkeypatch.setattr(dispatch, "BACKENDS", [dispatch.Backend("counting", Counting(), lambda x: None)])
    leaves, step, _ = case(RBN(), False)
    y, _ = run(normalize, leaves, step, None)
    assert calls == ["moments", "affine"]
    y.sum().backward()
    assert calls[2:] == ["gradient_sums", "gradient_apply"]
    leaves, step, _ = case(RBN(), False)
    leaves["x"] = leaves["x"].detach()
    calls.clear()
    run(normalize, leaves, step, None)[0].sum().backward()
    assert calls == ["moments", "affine", "gradient_sums"]
