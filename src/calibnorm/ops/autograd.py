"""The three steps of a layer, and their gradient: the library's only autograd.Function.

The backward pass has the forward's shape. With S1 and S2 the sums over pixels of dy and of ``dy * (x - m)``,

    d_shift = S1, d_scale = S2
    (dm, dv, d_parameters) = the vector-Jacobian product of the coefficient step at (d_scale, d_shift)
    dx = scale * dy + (2 * dv / S) * (x - m) + (dm - scale * S1) / S

so that every method has BatchNorm's own memory traffic, and none needs a gradient of its own. Only x, the two moments
and numbers of the size of a channel are saved. A plane of one pixel has neither pass: m is x, v is 0 and y the shift,
so that a large batch of them saves x alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from calibnorm.ops import dispatch, reference
from calibnorm.ops.coefficients import Statistics, Step

FEW_PIXELS = 2**15
"""Up to here, planes of one pixel go through the ordinary passes too: with fewer numbers, the fused coefficient step
takes less time than the plain operations (0.3 ms against 0.6 at (32, 64)), and what it saves is small anyway."""


def normalize(
    x: Tensor,
    step: Step,
    statistics: Statistics | None,
    tensors: tuple[Tensor, ...],
    residual: Tensor | None = None,
    relu: bool = False,
) -> tuple[Tensor, Statistics]:
    """Normalize x, add the residual and rectify, where asked. Return y and the statistics that were used.

    Args:
        x: (N, C, *spatial).
        step: The coefficient step.
        statistics: Mean and biased variance of every channel; None takes those of the batch.
        tensors: The learnable tensors, in the order of the step's names.
        residual: Of x's shape, added to the normalized x.
        relu: Rectify the result.
    """
    with _without_autocast(x):
        if dispatch.transformed(x) or (residual is not None and dispatch.transformed(residual)):
            return _differentiable(x, step, statistics, tensors, residual, relu)
        y, *used = _Normalize.apply(_two_layouts(x), residual, step, statistics, relu, *tensors)
        return y, statistics or (used[0], used[1])


def _differentiable(
    x: Tensor,
    step: Step,
    statistics: Statistics | None,
    tensors: tuple[Tensor, ...],
    residual: Tensor | None = None,
    relu: bool = False,
) -> tuple[Tensor, Statistics]:
    """The same three steps as plain torch operations."""
    # A graph that leaves torch is not wider than the pixels: ONNX runtimes and others have few float64 kernels.
    leaves = torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None
    m, v = reference.moments(x, reference.accumulation_dtype(x.dtype) if leaves else None)
    scale, shift, statistics = step(m, v, statistics, tensors)
    return reference.affine(x, m, scale, shift, residual, relu), statistics


def _one_pixel(
    x: Tensor,
    step: Step,
    statistics: Statistics | None,
    tensors: tuple[Tensor, ...],
    residual: Tensor | None = None,
    relu: bool = False,
) -> tuple[Tensor, Statistics]:
    """The same where every plane is one pixel: (N, C) numbers are as many as pixels, so none is wider than those."""
    m = x.flatten(1).to(reference.accumulation_dtype(x.dtype))
    _, shift, statistics = step(m, m.new_zeros(()).expand_as(m), statistics, tensors)
    y = shift.reshape(x.shape)
    if residual is not None:
        y = y + residual
    y = y.to(x.dtype)
    return torch.relu(y) if relu else y, statistics


class _Normalize(torch.autograd.Function):
    """y and the statistics used from x, the residual (or None), the running statistics (or None) and the tensors."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        step: Step,
        statistics: Statistics | None,
        relu: bool,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        backend = dispatch.choose(x)
        m, v = None, None
        if math.prod(x.shape[2:]) == 1 and x.numel() > FEW_PIXELS:
            y, (mean, var) = _one_pixel(x, step, statistics, tensors, residual, relu)
        else:
            m, v = backend.passes.moments(x)
            scale, shift, (mean, var) = backend.coefficients(step).forward(step, m, v, statistics, tensors)
            y = backend.passes.affine(x, m, scale, shift, residual, relu)
        # Running statistics are copied: a training step between this forward and its backward moves the originals.
        fixed = () if statistics is None else (mean.clone(), var.clone())
        # Only the mask of a ReLU needs the residual again.
        ctx.save_for_backward(x, m, v, residual if relu else None, *fixed, *tensors)
        ctx.step, ctx.backend, ctx.fixed, ctx.relu = step, backend, bool(fixed), relu
        ctx.set_materialize_grads(False)
        if fixed:
            return (y,)
        ctx.mark_non_differentiable(mean, var)
        return y, mean, var

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        wanted = (*ctx.needs_input_grad[:2], *ctx.needs_input_grad[5:])
        if dy is None:
            return (None, None, None, None, None, *(None for _ in wanted[2:]))
        x, m, v, residual, *rest = ctx.saved_tensors
        statistics = (rest[0], rest[1]) if ctx.fixed else None
        tensors = tuple(rest[2:] if ctx.fixed else rest)
        with _without_autocast(x):
            again = (dy, x, residual, ctx.step, statistics, ctx.relu, tensors, wanted)
            if torch.is_grad_enabled():  # create_graph=True: the gradient must itself be differentiable
                grads = _replay(_differentiable, *again, create_graph=True)
            elif m is None:
                with torch.enable_grad():
                    grads = _replay(_one_pixel, *again, create_graph=False)
            else:
                # Batched gradients (is_grads_batched) bring a transformed dy to a plain forward.
                backend = dispatch.BACKENDS[-1] if dispatch.transformed(dy) else ctx.backend
                grads = _fused(backend, dy, x, m, v, residual, ctx.step, statistics, ctx.relu, tensors, wanted)
        return (*grads[:2], None, None, None, *grads[2:])


def _fused(
    backend: dispatch.Backend,
    dy: Tensor,
    x: Tensor,
    m: Tensor,
    v: Tensor,
    residual: Tensor | None,
    step: Step,
    statistics: Statistics | None,
    relu: bool,
    tensors: tuple[Tensor, ...],
    wanted: tuple[bool, ...],
) -> list[Tensor | None]:
    """Gradients of x, of the residual and of the tensors in two passes over pixels."""
    passes, coefficients = backend.passes, backend.coefficients(step)
    rectified, shift = None, None
    if relu:
        scale, shift, _ = coefficients.forward(step, m, v, statistics, tensors)
        rectified = reference.Rectified(scale, shift, residual)
    sum_dy, sum_dy_centred, masked = passes.gradient_sums(dy, x, m, rectified)
    d_residual = dy if masked is None else masked
    found = coefficients.vjp(
        step,
        m,
        v,
        statistics,
        tensors,
        (sum_dy, sum_dy_centred),
        math.prod(x.shape[2:]),
        (wanted[0], *wanted[2:]),
    )
    dx = None
    if wanted[0]:
        assert found.slope is not None
        assert found.offset is not None
        if masked is not None:
            dx = passes.gradient_apply(masked, x, m, found.scale, found.slope, found.offset)
        else:
            dx = passes.gradient_apply(dy, x, m, found.scale, found.slope, found.offset, shift)
    return [dx, d_residual if wanted[1] else None, *found.tensors]


def _replay(
    forward: Callable[..., tuple[Tensor, Statistics]],
    dy: Tensor,
    x: Tensor,
    residual: Tensor | None,
    step: Step,
    statistics: Statistics | None,
    relu: bool,
    tensors: tuple[Tensor, ...],
    wanted: tuple[bool, ...],
    *,
    create_graph: bool,
) -> list[Tensor | None]:
    """The same gradients through the plain operations of ``forward``, as a graph of their own."""
    # Without a ReLU the residual is not kept, and its gradient is dy itself.
    passes_through = wanted[1] and not relu
    asked = (wanted[0], wanted[1] and relu, *wanted[2:])
    inputs = [t for t, want in zip((x, residual, *tensors), asked, strict=True) if want and t is not None]
    y, _ = forward(x, step, statistics, tensors, residual, relu)
    found: Iterator[Tensor | None] = iter(())
    if inputs:
        found = iter(
            torch.autograd.grad(y, inputs, dy, create_graph=create_graph, allow_unused=True, materialize_grads=True)
        )
    grads = [next(found) if want else None for want in asked]
    return [grads[0], dy if passes_through else grads[1], *grads[2:]]


def _two_layouts(x: Tensor) -> Tensor:
    """Return x contiguous or channels_last, as torch's BatchNorm does: backends see, and outputs have, no third one."""
    if x.is_contiguous():
        return x
    if x.ndim in (4, 5) and x.stride(1) == 1:
        return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
    return x.contiguous()


def _without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Keep autocast out: (N, C) numbers stay in the accumulation dtype, and the output keeps x's."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()
