"""Numbers that a float32 normalization gets wrong when it is written without care.

The reference is the float64 oracle on the same float32 input, with the same parameters.
"""

from __future__ import annotations

import math

import pytest
import torch

import calibnorm as cn
from cases import each_layer, each_layout, each_mode, image, parameters, randn, randomize
from oracles.bn import bn
from oracles.iebn import iebn
from oracles.rbn import rbn

ORACLES = {cn.BN2d: bn, cn.IEBN2d: iebn, cn.RBN2d: rbn}
COMPILED_PATH = pytest.param("compiled", marks=pytest.mark.untraced)
each_half = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])


def oracle(layer, x, statistics=None):
    p = {name: t.detach().double() for name, t in parameters(layer).items()}
    if statistics is not None:
        statistics = tuple(t.double() for t in statistics)
    return ORACLES[type(layer)](x.detach().double(), p, statistics, eps=layer.eps)


def calibrated(layer_type, mean, gate=0.3):
    """A layer whose gates depend on the input, and are not saturated by a mean of ``mean``."""
    layer = layer_type(4, momentum=1.0)
    with torch.no_grad():
        for name, p in layer.named_parameters():
            if name == "gate_weight":
                p.fill_(gate / max(mean, 1.0))
            elif name in ("center_weight", "scale_weight"):
                p.fill_(gate)
    return layer


LARGE_MEANS = [(0.0, 2e-6, 1e-4), (1e2, 2e-5, 1e-4), (1e4, 2e-3, 1e-4), (1e6, 1e-1, 1e-3)]


@each_layer
@each_layout
@each_mode
@pytest.mark.parametrize(("mean", "bound", "var_bound"), LARGE_MEANS, ids=[f"mean={m:g}" for m, *_ in LARGE_MEANS])
@pytest.mark.parametrize("shape", [(8, 4, 16, 16), (64, 4, 4, 4)], ids=str)
def test_large_mean(layer_type, layout, training, mean, bound, var_bound, shape):
    x = randn(*shape, mean=mean).contiguous(memory_format=layout)
    layer = calibrated(layer_type, mean)
    y = layer(x)
    expected, (_, var) = oracle(layer, x)
    n = x.numel() // 4
    assert (layer.bn.running_var.double() / (var * n / (n - 1)) - 1).abs().max() <= var_bound
    if not training:
        y = layer.eval()(x)
        expected, _ = oracle(layer, x, (layer.bn.running_mean, layer.bn.running_var))
    assert (y.double() - expected).abs().max() <= bound


@each_layer
@pytest.mark.parametrize("mean", [1e4, 1e6], ids=lambda m: f"mean={m:g}")
@pytest.mark.parametrize("path", ["eager", COMPILED_PATH])
def test_statistics_of_every_path(layer_type, path, mean):
    """Float32 (N, C) numbers put 2e-5 on the variance at mean 1e4, and 1e-3 at 1e6."""
    x = randn(8, 4, 16, 16, mean=mean)
    layer = calibrated(layer_type, mean)
    torch._dynamo.reset()
    (torch.compile(layer, backend="aot_eager") if path == "compiled" else layer)(x)
    _, (_, var) = oracle(layer, x)
    n = x.numel() // 4
    assert (layer.bn.running_var.double() / (var * n / (n - 1)) - 1).abs().max() <= 2e-6


@each_layer
@pytest.mark.parametrize("path", ["eager", COMPILED_PATH, "double backward"])
def test_gradient_of_every_path(layer_type, path):
    x = randn(8, 4, 16, 16, mean=1e4).requires_grad_()
    layer, dy = calibrated(layer_type, 1e4), randn(8, 4, 16, 16, seed=3)
    torch._dynamo.reset()
    y = (torch.compile(layer, backend="aot_eager") if path == "compiled" else layer)(x)
    (dx,) = torch.autograd.grad(y, x, dy, create_graph=path == "double backward")
    exact = x.detach().double().requires_grad_()
    p = {name: t.detach().double() for name, t in parameters(layer).items()}
    expected, _ = ORACLES[layer_type](exact, p, None, eps=layer.eps)
    (expected_dx,) = torch.autograd.grad(expected, exact, dy.double())
    assert (dx.double() - expected_dx).abs().max() <= 1e-5


@each_layer
@each_layout
@pytest.mark.parametrize("value", [3.3, 1e6 + 0.1, 1e20])
def test_constant_channel(layer_type, layout, value):
    layer = calibrated(layer_type, value)
    with torch.no_grad():
        layer.bias.copy_(torch.arange(4.0))
    x = torch.full((8, 4, 7, 7), value).contiguous(memory_format=layout).requires_grad_()
    y = layer(x)
    assert (y - layer.bias.view(1, 4, 1, 1)).abs().max() < 1e-2
    y.backward(randn(8, 4, 7, 7))
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@each_layer
@each_layout
@each_half
@pytest.mark.parametrize("std", [1.0, 3000.0])
def test_half_inputs(layer_type, layout, dtype, std):
    x = randn(8, 4, 8, 8, std=std).clamp(-6e4, 6e4).to(dtype).contiguous(memory_format=layout).requires_grad_()
    layer = calibrated(layer_type, std)
    y = layer(x)
    _, (mean, var) = oracle(layer, x)
    y.backward(randn(8, 4, 8, 8, dtype=dtype))
    assert y.dtype == x.grad.dtype == dtype
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
    assert (layer.bn.running_mean.double() - mean).abs().max() <= 1e-5 * std
    assert (layer.bn.running_var.double() * 511 / 512 / var - 1).abs().max() <= 1e-5


def check_many_values(layer_type, side, bound=1e-4):
    x = (2.0 + torch.randn(1, 1, side, side, generator=torch.Generator().manual_seed(0))).contiguous(
        memory_format=torch.channels_last
    )
    layer = layer_type(1, momentum=1.0)
    with torch.no_grad():
        layer(x)
    sums = [(part.double().sum(), (part.double() - 2).square().sum()) for part in x.split(512, 2)]
    mean = sum(s for s, _ in sums) / x.numel()
    var = sum(q for _, q in sums) / x.numel() - (mean - 2) ** 2
    assert abs(layer.bn.running_mean.item() - mean) < bound
    assert abs(layer.bn.running_var.item() - var) < bound


@each_layer
def test_many_values_a_channel(layer_type):
    check_many_values(layer_type, 2**11)


@pytest.mark.nightly
@each_layer
def test_two_to_the_26_values_a_channel(layer_type):
    check_many_values(layer_type, 2**13)


@each_layer
def test_many_instances_of_one_value(layer_type):
    x = randn(880801, 1, 1, 1, mean=2.0)
    layer = layer_type(1, momentum=1.0)
    with torch.no_grad():
        y = layer(x)
    _, (mean, var) = oracle(layer, x)
    assert abs(layer.bn.running_mean.item() - mean.item()) < 1e-6
    assert abs(layer.bn.running_var.item() - var.item()) < 1e-5
    assert y.isfinite().all()


@each_layer
@each_layout
@each_mode
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_value(layer_type, layout, training, bad):
    """It stays in its channel, and in eval in its instance; so do its gradients and the statistics."""
    x = image(layout=layout)
    layer, clean = (randomize(layer_type(4)).train(training) for _ in range(2))
    expected = clean(x)
    x[1, 2, 0, 3] = bad
    x.requires_grad_()
    y = layer(x)
    assert not y[1, 2].isfinite().all(), "a bad value vanished"
    touched = torch.zeros(4, 4, dtype=torch.bool)
    touched[slice(None) if training else 1, 2] = True
    assert torch.equal(y[~touched], expected[~touched])
    y.backward(image(seed=3))
    assert x.grad[~touched].isfinite().all()
    channels = torch.arange(4) != 2
    assert all(p.grad[channels].isfinite().all() for p in layer.parameters())
    for name in ("running_mean", "running_var"):
        assert layer.bn.get_buffer(name)[channels].isfinite().all()


@each_layer
@each_layout
def test_overflowing_variance_is_not_silently_zero(layer_type, layout):
    """The variance of std 1e20 is 1e40. A NaN or an inf is honest; the right answer is better; a constant is a lie."""
    x = randn(8, 4, 8, 8, std=1e20).contiguous(memory_format=layout)
    layer = layer_type(4)
    y = layer(x)
    assert not (y - layer.bias.view(1, 4, 1, 1) == 0).any()
    assert not layer.bn.running_var.isfinite().any()


@each_layer
@each_layout
@each_mode
@pytest.mark.parametrize("size", [1e-42, 1e-38, 1e-30])
def test_subnormals(layer_type, layout, training, size):
    x = randn(8, 4, 8, 8, std=size).contiguous(memory_format=layout).requires_grad_()
    layer = randomize(layer_type(4)).train(training)
    y = layer(x)
    y.backward(randn(8, 4, 8, 8))
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    assert all(b.isfinite().all() for b in layer.buffers())


DEAD = [*((layer, {}) for layer in ORACLES), (cn.RBN2d, {"center_stat": "std", "scale_stat": "std"})]


@pytest.mark.parametrize(("layer_type", "options"), DEAD, ids=["BN2d", "IEBN2d", "RBN2d", "RBN2d std"])
@each_layout
@each_mode
def test_dead_channel(layer_type, options, layout, training):
    """All zeros after a ReLU, for every instance or for one."""
    layer = randomize(layer_type(4, **options)).train(training)
    x = image(layout=layout)
    x[:, 1] = 0.0
    x[2] = 0.0
    x.requires_grad_()
    y = layer(x)
    y.backward(image(seed=3))
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
