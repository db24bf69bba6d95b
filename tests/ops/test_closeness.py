"""Where conditioning is poor, kernels and reference differ: neither is farther from float64 than the other by much."""

from __future__ import annotations

import copy

import pytest
import torch

import calibnorm as cn
from cases import each_layout, each_method, layer_of, randn

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SLACK = 4.0
"""Of about 24,000 tensors of 3,000 random layers 15 differed by more than 64 eps: the kernels were closer to float64 in
7 of them and the reference in 6, on planes of two pixels (whose gradient in IN cancels) or of mean 100 and std 1e-3."""


def results(layer, x, dy, backend):
    layer, x = copy.deepcopy(layer), x.clone(memory_format=torch.preserve_format).requires_grad_()
    with cn.use_backend(backend):
        y = layer(x)
        y.backward(dy)
    grads = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    return {name: t.detach().double() for name, t in {"y": y, "dx": x.grad, **grads}.items()}


@pytest.mark.skipif(not cn.backends()["cpu"].runs, reason="the kernels are not built")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pixels", [(1, 2), (3, 5)], ids=str)
@each_method
@each_layout
def test_kernels_are_as_close_to_float64_as_the_reference(method, options, layout, pixels, dtype):
    layer = layer_of(method, options)
    layer.bn.num_batches_tracked.fill_(50_000)
    worst: dict[str, list[float]] = {}
    for seed in range(12):
        layer.bn.eps = (1e-12, 1e-5, 1e-3)[seed % 3]
        x = randn(4, 4, *pixels, seed=seed, dtype=torch.float64, mean=(0.0, 1.0, 100.0, 0.0)[seed % 4])
        x, dy = x.to(dtype).contiguous(memory_format=layout), randn(4, 4, *pixels, seed=100 + seed).to(dtype)
        exact = results(layer.double(), x.double(), dy.double(), "reference")
        layer = layer.float()
        kernels, reference = (results(layer, x, dy, backend) for backend in ("cpu", "reference"))
        for name, value in exact.items():
            finite = torch.isfinite(kernels[name])
            assert torch.equal(finite, torch.isfinite(reference[name])), f"{name}: overflows elsewhere"
            size = max(value[finite].abs().max().item(), 1.0) if finite.any() else 1.0
            for i, found in enumerate((kernels, reference)):
                error = (found[name] - value)[finite].abs().max().item() / size if finite.any() else 0.0
                worst.setdefault(name, [0.0, 0.0])[i] = max(worst.setdefault(name, [0.0, 0.0])[i], error)
    floor = 64 * torch.finfo(dtype).eps
    assert {name: w for name, w in worst.items() if w[0] > SLACK * w[1] + floor} == {}
