"""The three steps of a layer, and their gradient: the library's only autograd.Function.

The backward pass has the forward's shape. With S1 and S2 the sums over pixels of dy and of ``dy * (x - m)``,

    d_shift = S1, d_scale = S2
    (dm, dv, d_parameters) = the vector-Jacobian product of the coefficient step at (d_scale, d_shift)
    dx = scale * dy + (2 * dv / S) * (x - m) + (dm - scale * S1) / S

so that every method has BatchNorm's own memory traffic, and none needs a gradient of its own. Only x, the two moments
and numbers of the size of a channel are saved.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from calibnorm._checks import Noise
from calibnorm.methods import Batch, Instance, Method
from calibnorm.ops import dispatch, reference
from calibnorm.ops.statistics import batch_statistics

Statistics = tuple[Tensor, Tensor]
"""Mean and biased variance of every channel, each (C,)."""


class Step(NamedTuple):
    """The coefficient step of one call: the method and everything about it that is not a tensor."""

    method: Method
    names: tuple[str, ...]
    eps: float
    noise: Noise | None

    def __call__(
        self, m: Tensor, v: Tensor, statistics: Statistics | None, tensors: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Statistics]:
        """Return scale and shift, (N, C), and the statistics used: the given ones, or this batch's."""
        params = {name: tensor.to(m.dtype) for name, tensor in zip(self.names, tensors, strict=True)}
        mean_NC, var_NC = self.method.instance_stats(m, v, params)
        if statistics is None:
            statistics = batch_statistics(mean_NC, var_NC)
        mean, var = (t.to(m.dtype) for t in statistics)
        batch = Batch(mean, var, self.eps, self.noise)
        scale, shift = self.method.coefficients(Instance(m, v, mean_NC, var_NC), batch, params)
        return scale.expand_as(m), shift.expand_as(m), (mean, var)


def normalize(
    x: Tensor, step: Step, statistics: Statistics | None, tensors: tuple[Tensor, ...]
) -> tuple[Tensor, Statistics]:
    """Normalize x; ``statistics=None`` takes those of the batch. Return y and the statistics that were used."""
    with _without_autocast(x):
        if dispatch.transformed(x):
            return _differentiable(x, step, statistics, tensors)
        y, *used = _Normalize.apply(_two_layouts(x), step, statistics, *tensors)
        return y, statistics or (used[0], used[1])


def _differentiable(
    x: Tensor, step: Step, statistics: Statistics | None, tensors: tuple[Tensor, ...]
) -> tuple[Tensor, Statistics]:
    """The same three steps as plain torch operations."""
    # Not wider than the pixels: ONNX runtimes and other compilers have few float64 kernels.
    m, v = reference.moments(x, reference.accumulation_dtype(x.dtype))
    scale, shift, statistics = step(m, v, statistics, tensors)
    return reference.affine(x, m, scale, shift), statistics


class _Normalize(torch.autograd.Function):
    """y and the statistics used from x, the running statistics (or None) and the learnable tensors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Step, statistics: Statistics | None, *tensors: Tensor) -> tuple[Tensor, ...]:
        backend = dispatch.choose(x)
        m, v = backend.passes.moments(x)
        scale, shift, (mean, var) = step(m, v, statistics, tensors)
        y = backend.passes.affine(x, m, scale, shift)
        # Running statistics are copied: a training step between this forward and its backward moves the originals.
        fixed = () if statistics is None else (mean.clone(), var.clone())
        ctx.save_for_backward(x, m, v, *fixed, *tensors)
        ctx.step, ctx.backend, ctx.fixed = step, backend, bool(fixed)
        ctx.set_materialize_grads(False)
        if fixed:
            return (y,)
        ctx.mark_non_differentiable(mean, var)
        return y, mean, var

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        wanted = (ctx.needs_input_grad[0], *ctx.needs_input_grad[3:])
        if dy is None:
            return (None, None, None, *(None for _ in wanted[1:]))
        x, m, v, *rest = ctx.saved_tensors
        statistics = (rest[0], rest[1]) if ctx.fixed else None
        tensors = tuple(rest[2:] if ctx.fixed else rest)
        with _without_autocast(x):
            if torch.is_grad_enabled():  # create_graph=True: the gradient must itself be differentiable
                grads = _replay(dy, x, ctx.step, statistics, tensors, wanted)
            else:
                grads = _fused(ctx.backend.passes, dy, x, m, v, ctx.step, statistics, tensors, wanted)
        return (grads[0], None, None, *grads[1:])


def _fused(
    passes: dispatch.Passes,
    dy: Tensor,
    x: Tensor,
    m: Tensor,
    v: Tensor,
    step: Step,
    statistics: Statistics | None,
    tensors: tuple[Tensor, ...],
    wanted: tuple[bool, ...],
) -> list[Tensor | None]:
    """Gradients of x and of the tensors in two passes over pixels."""
    sum_dy, sum_dy_centred = passes.gradient_sums(dy, x, m)
    leaves = [t.detach().requires_grad_(want) for t, want in zip((m, v, *tensors), (wanted[0], *wanted), strict=True)]
    with torch.enable_grad():
        scale, shift, _ = step(leaves[0], leaves[1], statistics, tuple(leaves[2:]))
    reached = [(out, d_out) for out, d_out in ((scale, sum_dy_centred), (shift, sum_dy)) if out.requires_grad]
    found = iter(
        torch.autograd.grad(
            [out for out, _ in reached],
            [leaf for leaf in leaves if leaf.requires_grad],
            [d_out for _, d_out in reached],
            allow_unused=True,
            materialize_grads=True,
        )
    )
    dm, dv, *d_tensors = (next(found) if leaf.requires_grad else None for leaf in leaves)
    if dm is None or dv is None:
        return [None, *d_tensors]
    scale = scale.detach()
    pixels = math.prod(x.shape[2:])
    dx = passes.gradient_apply(dy, x, m, scale, dv * (2.0 / pixels), (dm - scale * sum_dy) / pixels)
    return [dx, *d_tensors]


def _replay(
    dy: Tensor,
    x: Tensor,
    step: Step,
    statistics: Statistics | None,
    tensors: tuple[Tensor, ...],
    wanted: tuple[bool, ...],
) -> list[Tensor | None]:
    """The same gradients through the plain operations, as a graph of their own."""
    inputs = [t for t, want in zip((x, *tensors), wanted, strict=True) if want]
    y, _ = _differentiable(x, step, statistics, tensors)
    found = iter(torch.autograd.grad(y, inputs, dy, create_graph=True, allow_unused=True, materialize_grads=True))
    return [next(found) if want else None for want in wanted]


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
