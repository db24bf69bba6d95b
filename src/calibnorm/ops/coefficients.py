"""The coefficient step between the passes: (N, C) numbers in, (N, C) numbers out, and back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from calibnorm._checks import Noise
from calibnorm.methods import Batch, Instance, Method
from calibnorm.ops.statistics import Reduction, Statistics, reduction_of
from calibnorm.ops.synchronized import Synchronized


class Step(NamedTuple):
    """The coefficient step of one call: the method and everything about it that is not a tensor."""

    method: Method
    names: tuple[str, ...]
    eps: float
    noise: Noise | None
    synchronized: Synchronized | None = None
    """How the statistics of several processes are taken, or None for those of this one alone."""

    @property
    def reduction(self) -> Reduction | None:
        """How the statistics of a batch are taken; None where none enter the method."""
        return self.synchronized or reduction_of(self.method)

    def instance(self, m: Tensor, v: Tensor, tensors: tuple[Tensor, ...]) -> tuple[Instance, dict[str, Tensor]]:
        """Return what every instance brings by itself, and the tensors by name in the moments' dtype."""
        params = {name: tensor.to(m.dtype) for name, tensor in zip(self.names, tensors, strict=True)}
        return Instance(m, v, *self.method.instance_stats(m, v, params)), params

    def reduce(self, x: Instance) -> Statistics:
        """Return the statistics of this batch, as the method takes them; without elements where it takes none."""
        reduction = self.reduction
        return (x.m.new_empty(0), x.m.new_empty(0)) if reduction is None else reduction.forward(x.M, x.V)

    def finish(self, x: Instance, statistics: Statistics, params: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return scale and shift, (N, C)."""
        mean, var = statistics
        scale, shift = self.method.coefficients(x, Batch(mean, var, self.eps, self.noise), params)
        return scale.expand_as(x.m), shift.expand_as(x.m)

    def __call__(
        self, m: Tensor, v: Tensor, statistics: Statistics | None, tensors: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Statistics]:
        """Return scale and shift, (N, C), and the statistics used: the given ones, or this batch's."""
        x, params = self.instance(m, v, tensors)
        mean, var = (t.to(m.dtype) for t in (self.reduce(x) if statistics is None else statistics))
        return *self.finish(x, (mean, var), params), (mean, var)


class Moving(NamedTuple):
    """Running statistics that a forward moves towards those of its batch."""

    buffers: tuple[Tensor, ...]
    """Running mean and variance, and perhaps the count of batches."""
    momentum: float
    unbias: float
    """What makes the biased variance of the batch an unbiased one."""


class Call(NamedTuple):
    """Everything about one forward beside its input."""

    step: Step
    statistics: Statistics | None
    """The running ones, or None for those of the batch."""
    tensors: tuple[Tensor, ...]
    """The learnable tensors, in the order of the step's names."""
    residual: Tensor | None = None
    """Of the input's shape, added to the normalized input."""
    relu: bool = False
    """Rectify the result."""
    found: Statistics | None = None
    """In a backward, the statistics of the batch as forward found them, where it used them."""
    moving: Moving | None = None
    """What a backend may move on the way; it says so then."""

    def coefficients(self, m: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Statistics]:
        """Return scale and shift, (N, C), and the statistics used."""
        return self.step(m, v, self.statistics or self.found, self.tensors)


class Pulled(NamedTuple):
    """What the coefficient step's backward finds."""

    scale: Tensor
    slope: Tensor | None
    """``2 * dv / S``, or None where x needs no gradient."""
    offset: Tensor | None
    """``(dm - scale * S1) / S``, or None where x needs no gradient."""
    tensors: list[Tensor | None]
    """Gradients of the learnable tensors, None where none is wanted."""


def pull_back(
    call: Call, m: Tensor, v: Tensor, sums: tuple[Tensor, Tensor], pixels: int, wanted: tuple[bool, ...]
) -> Pulled:
    """Return the gradients from S1 and S2; ``wanted`` is about x and then the learnable tensors."""
    scale, dm, dv, d_wide = vjp(call, m, v, sums, wanted)
    d_tensors = [None if d is None else d.to(t.dtype) for d, t in zip(d_wide, call.tensors, strict=True)]
    if dm is None or dv is None:
        return Pulled(scale, None, None, d_tensors)
    return Pulled(scale, dv * (2.0 / pixels), (dm - scale * sums[0]) / pixels, d_tensors)


def vjp(
    call: Call, m: Tensor, v: Tensor, sums: tuple[Tensor, Tensor], wanted: tuple[bool, ...]
) -> tuple[Tensor, Tensor | None, Tensor | None, list[Tensor | None]]:
    """Return scale, dm, dv and the gradients of the learnable tensors, all in the dtype of m.

    By autograd, but through the statistics of the batch by their reduction's own gradient.
    """
    direct = vjp_but_statistics(call, m, v, sums, wanted)
    found = direct.found
    if direct.of_statistics is not None:
        reduction, mean = call.step.reduction, direct.mean
        assert reduction is not None
        d_entering = reduction.vjp(direct.instance.M.detach(), mean, *direct.of_statistics)
        through = vjp_of_instance(direct.instance, direct.learning, d_entering)
        found = [one + more for one, more in zip(found, through, strict=True)]
    of_leaf = iter(found)
    dm, dv, *d_wide = (next(of_leaf) if want else None for want in (wanted[0], *wanted))
    return direct.scale, dm, dv, d_wide


class Direct(NamedTuple):
    """A gradient without what passes through the statistics of a batch."""

    scale: Tensor
    mean: Tensor
    """The statistic that was used."""
    instance: Instance
    """With its graph."""
    learning: list[Tensor]
    """m, v and the learnable tensors, those that want a gradient."""
    found: list[Tensor]
    """Their gradients."""
    of_statistics: tuple[Tensor, Tensor] | None
    """Those of mean and variance, where they are of the batch and something that wants a gradient enters them."""


def vjp_but_statistics(
    call: Call, m: Tensor, v: Tensor, sums: tuple[Tensor, Tensor], wanted: tuple[bool, ...]
) -> Direct:
    """Return the gradients with the statistics held constant, and those of the statistics."""
    sum_dy, sum_dy_centred = sums
    # Wide before they are leaves: the two parts of a gradient may cancel, and are rounded when they are one.
    wide = (t.detach().to(m.dtype) for t in (m, v, *call.tensors))
    leaves = [t.requires_grad_(want) for t, want in zip(wide, (wanted[0], *wanted), strict=True)]
    with torch.enable_grad():
        x, params = call.step.instance(leaves[0], leaves[1], tuple(leaves[2:]))
        of_batch = call.statistics is None and call.step.reduction is not None
        enters = of_batch and (x.M.requires_grad or x.V.requires_grad)
        used = call.statistics or call.found or call.step.reduce(x)
        mean, var = (t.detach().to(m.dtype).requires_grad_(enters) for t in used)
        scale, shift = call.step.finish(x, (mean, var), params)
    reached = [(out, d_out) for out, d_out in ((scale, sum_dy_centred), (shift, sum_dy)) if out.requires_grad]
    learning = [leaf for leaf in leaves if leaf.requires_grad]
    outputs, cotangents = [out for out, _ in reached], [d_out for _, d_out in reached]
    found, of_statistics = _vjp(outputs, [*learning, mean, var] if enters else learning, cotangents), None
    if enters:
        *found, d_mean, d_var = found
        of_statistics = d_mean, d_var
    return Direct(scale.detach(), mean.detach(), x, learning, found, of_statistics)


def vjp_of_instance(x: Instance, learning: list[Tensor], cotangents: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Return the gradients of what learns by way of M and V, from theirs."""
    reached = [(t, d) for t, d in zip((x.M, x.V), cotangents, strict=True) if t.requires_grad]
    return _vjp([t for t, _ in reached], learning, [d for _, d in reached])


def _vjp(outputs: list[Tensor], inputs: list[Tensor], cotangents: list[Tensor]) -> list[Tensor]:
    """Return the gradients by autograd, zeros where an input does not matter; the graph stays."""
    if not inputs or not outputs:  # a residual alone wants a gradient, which is not of the coefficients
        return [torch.zeros_like(t) for t in inputs]
    return list(
        torch.autograd.grad(outputs, inputs, cotangents, retain_graph=True, allow_unused=True, materialize_grads=True)
    )
