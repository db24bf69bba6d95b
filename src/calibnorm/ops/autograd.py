"""The three steps of a layer, and their gradient: the library's only autograd.Function.

The backward pass has the forward's shape. With S1 and S2 the sums over pixels of dy and of ``dy * (x - m)``,

    d_shift = S1, d_scale = S2
    (dm, dv, d_parameters) = the vector-Jacobian product of the coefficient step at (d_scale, d_shift)
    dx = scale * dy + (2 * dv / S) * (x - m) + (dm - scale * S1) / S

so that every method has BatchNorm's own memory traffic, and none needs a gradient of its own. Only x, the two moments
and numbers of the size of a channel are saved; of a plane of one pixel, where m is x and v is 0, x alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from calibnorm.ops import dispatch, reference
from calibnorm.ops.coefficients import Call, Statistics
from calibnorm.ops.composed import Gradients, Wanted


def normalize(x: Tensor, call: Call) -> tuple[Tensor, Statistics]:
    """Normalize x, (N, C, *spatial); add the residual and rectify, where asked. Return y and the statistics used."""
    with _without_autocast(x):
        if dispatch.transformed(x) or (call.residual is not None and dispatch.transformed(call.residual)):
            return differentiable(x, call)
        y, *used = _Normalize.apply(_two_layouts(x), call.residual, call, *call.tensors)
        return y, call.statistics or (used[0], used[1])


def differentiable(x: Tensor, call: Call) -> tuple[Tensor, Statistics]:
    """The same three steps as plain torch operations."""
    # A graph that leaves torch is not wider than the pixels: ONNX runtimes and others have few float64 kernels.
    leaves = torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None
    m, v = reference.moments(x, reference.accumulation_dtype(x.dtype) if leaves else None)
    scale, shift, statistics = call.coefficients(m, v)
    return reference.affine(x, m, scale, shift, call.residual, call.relu), statistics


class _Normalize(torch.autograd.Function):
    """y, and the statistics of the batch where those were used, from x, the residual (or None) and the tensors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor | None, call: Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        backend = dispatch.choose(x)
        y, moments, statistics = backend.three_steps(call.step).forward(x, call)
        # Running statistics are copied: a training step between this forward and its backward moves the originals.
        fixed = () if call.statistics is None else tuple(t.clone() for t in statistics)
        # Only the mask of a ReLU needs the residual again.
        ctx.save_for_backward(x, moments, residual if call.relu else None, *tensors, *fixed)
        # Tensors are in the context's own care alone, which sees changes in place and frees them.
        ctx.call, ctx.backend = Call(call.step, None, (), None, call.relu), backend
        ctx.set_materialize_grads(False)
        if fixed:
            return (y,)
        ctx.mark_non_differentiable(*statistics)
        return y, *statistics

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad
        wanted = Wanted(needed[0], needed[1], needed[3:])
        if dy is None:
            return (None, None, None, *(None for _ in wanted.tensors))
        x, moments, residual, *rest = ctx.saved_tensors
        tensors, fixed = rest[: len(wanted.tensors)], rest[len(wanted.tensors) :]
        call = ctx.call._replace(statistics=tuple(fixed) if fixed else None, tensors=tuple(tensors), residual=residual)
        with _without_autocast(x):
            if torch.is_grad_enabled():  # create_graph=True: the gradient must itself be differentiable
                found = _replay(dy, x, call, wanted)
            else:
                # Batched gradients (is_grads_batched) bring a transformed dy to a plain forward.
                backend = dispatch.BACKENDS[-1] if dispatch.transformed(dy) else ctx.backend
                found = backend.three_steps(call.step).backward(dy, x, moments, call, wanted)
        return (found.x, found.residual, None, *found.tensors)


def _replay(dy: Tensor, x: Tensor, call: Call, wanted: Wanted) -> Gradients:
    """The same gradients as a graph of their own, through the plain operations."""
    # Without a ReLU the residual is not kept, and its gradient is dy itself.
    asked = (wanted.x, wanted.residual and call.relu, *wanted.tensors)
    inputs = [t for t, want in zip((x, call.residual, *call.tensors), asked, strict=True) if want and t is not None]
    y, _ = differentiable(x, call)
    found: Iterator[Tensor | None] = iter(())
    if inputs:
        found = iter(torch.autograd.grad(y, inputs, dy, create_graph=True, allow_unused=True, materialize_grads=True))
    d_x, d_residual, *d_tensors = (next(found) if want else None for want in asked)
    return Gradients(d_x, dy if wanted.residual and not call.relu else d_residual, d_tensors)


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
