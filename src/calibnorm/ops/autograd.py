"""The three steps of a layer, and their gradient: the library's only autograd.Function over pixels.

The backward pass has the forward's shape. With S1 and S2 the sums over pixels of dy and of ``dy * (x - m)``,

    d_shift = S1, d_scale = S2
    (dm, dv, d_parameters) = the vector-Jacobian product of the coefficient step at (d_scale, d_shift)
    dx = scale * dy + (2 * dv / S) * (x - m) + (dm - scale * S1) / S

so that every method has BatchNorm's own memory traffic, and none needs a gradient of its own. Only x, the two moments
and numbers of the size of a channel are saved; of a plane of one pixel, where m is x and v is 0, x alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from calibnorm.ops import dispatch, reference
from calibnorm.ops.coefficients import Call
from calibnorm.ops.inputs import exporting, in_two_layouts, transformed
from calibnorm.ops.statistics import Statistics
from calibnorm.ops.three_steps import Gradients, Normalized, Wanted, without_autocast


def normalize(x: Tensor, call: Call) -> tuple[Tensor, Statistics]:
    """Normalize x, (N, C, *spatial); add the residual and rectify, where asked. Return y and the statistics used."""
    if transformed(x) or (call.residual is not None and transformed(call.residual)):
        with without_autocast(x):
            return differentiable(x, call)
    y, statistics = computed(x, call)
    assert statistics is not None, "nothing was to be moved"
    return y, statistics


def computed(x: Tensor, call: Call) -> tuple[Tensor, Statistics | None]:
    """The same of plain tensors, by a backend; no statistics where they have moved the running ones."""
    x = in_two_layouts(x)
    backend = dispatch.choose(x)
    done = backend.three_steps(call.step).forward(x, call)
    if torch.is_grad_enabled():
        return _Normalize.apply(x, call.residual, call, done, backend, *call.tensors), done.statistics
    return done.y, done.statistics


def differentiable(x: Tensor, call: Call) -> tuple[Tensor, Statistics]:
    """The same three steps as plain torch operations."""
    # A graph that leaves torch is not wider than the pixels: ONNX runtimes and others have few float64 kernels.
    leaves = exporting() or torch._C._get_tracing_state() is not None
    m, v = reference.moments(x, reference.accumulation_dtype(x.dtype) if leaves else None)
    scale, shift, statistics = call.coefficients(m, v)
    return reference.affine(x, m, scale, shift, call.residual, call.relu), statistics


class _Normalize(torch.autograd.Function):
    """The y of what is done already, as a function of x, the residual (or None) and the tensors."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        call: Call,
        done: Normalized,
        backend: dispatch.Backend,
        *tensors: Tensor,
    ) -> Tensor:
        # Running statistics are copied: a training step between this forward and its backward moves the originals.
        fixed = done.statistics if call.statistics is None else tuple(t.clone() for t in call.statistics)
        # Only the mask of a ReLU needs the residual again.
        ctx.save_for_backward(x, done.moments, residual if call.relu else None, *tensors, *(fixed or ()))
        # The context keeps tensors in its own care alone, which frees them and sees changes in place.
        ctx.step, ctx.relu, ctx.backend, ctx.given = call.step, call.relu, backend, call.statistics is not None
        ctx.set_materialize_grads(False)
        return done.y

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad
        wanted = Wanted(needed[0], needed[1], needed[5:])
        if dy is None:
            return (None,) * len(needed)
        x, moments, residual, *rest = ctx.saved_tensors
        step, learnable = ctx.step, len(wanted.tensors)
        statistics = tuple(rest[learnable:]) or None
        fixed, found_before = (statistics, None) if ctx.given else (None, statistics)
        call = Call(step, fixed, tuple(rest[:learnable]), residual, ctx.relu, found_before)
        if torch.is_grad_enabled():  # create_graph=True: the gradient must itself be differentiable
            with without_autocast(x):
                found = _replay(dy, x, call._replace(found=None), wanted)
        elif transformed(dy):  # batched gradients (is_grads_batched) of a plain forward
            moments = moments if statistics else None  # as another backend keeps them
            found = dispatch.BACKENDS[-1].three_steps(step).backward(dy, x, moments, call, wanted)
        else:
            found = ctx.backend.three_steps(step).backward(dy, x, moments, call, wanted)
        return (found.x, found.residual, None, None, None, *found.tensors)


def _replay(dy: Tensor, x: Tensor, call: Call, wanted: Wanted) -> Gradients:
    """The same gradients as a graph of their own, through the plain operations."""
    # Nodes of their own: x may come from the residual (in a residual block), or from the layer's tensors (where it runs
    # twice), and autograd.grad would count that way to them too.
    x, *tensors = (t.view_as(t) for t in (x, *call.tensors))
    residual = None if call.residual is None else call.residual.view_as(call.residual)
    call = call._replace(tensors=tuple(tensors), residual=residual)
    # Without a ReLU the residual is not kept, and its gradient is dy itself.
    asked = (wanted.x, wanted.residual and call.relu, *wanted.tensors)
    inputs = [t for t, want in zip((x, residual, *tensors), asked, strict=True) if want and t is not None]
    y, _ = differentiable(x, call)
    found: Iterator[Tensor | None] = iter(())
    if inputs:
        found = iter(torch.autograd.grad(y, inputs, dy, create_graph=True, allow_unused=True, materialize_grads=True))
    d_x, d_residual, *d_tensors = (next(found) if want else None for want in asked)
    return Gradients(d_x, dy if wanted.residual and not call.relu else d_residual, d_tensors)
