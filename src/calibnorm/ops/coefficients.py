"""The coefficient step between the passes: (N, C) numbers in, (N, C) numbers out, and back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from calibnorm._checks import Noise
from calibnorm.methods import Batch, Instance, Method
from calibnorm.ops.statistics import batch_statistics, ghost_statistics

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
            statistics = self.statistics_of_batch(mean_NC, var_NC)
        mean, var = (t.to(m.dtype) for t in statistics)
        batch = Batch(mean, var, self.eps, self.noise)
        scale, shift = self.method.coefficients(Instance(m, v, mean_NC, var_NC), batch, params)
        return scale.expand_as(m), shift.expand_as(m), (mean, var)

    def statistics_of_batch(self, mean_NC: Tensor, var_NC: Tensor) -> Statistics:
        """Return the statistics of this batch, or (N, C) of its ghost batches, where the method has such."""
        size = self.method.ghost_size
        return batch_statistics(mean_NC, var_NC) if size is None else ghost_statistics(mean_NC, var_NC, size)


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

    def coefficients(self, m: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Statistics]:
        """Return scale and shift, (N, C), and the statistics used."""
        return self.step(m, v, self.statistics, self.tensors)


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
    """Return the gradients from S1 and S2, by autograd; ``wanted`` is about x and then the learnable tensors."""
    sum_dy, sum_dy_centred = sums
    needed = (wanted[0], *wanted)
    leaves = [t.detach().requires_grad_(want) for t, want in zip((m, v, *call.tensors), needed, strict=True)]
    with torch.enable_grad():
        scale, shift, _ = call._replace(tensors=tuple(leaves[2:])).coefficients(leaves[0], leaves[1])
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
    scale = scale.detach()
    if dm is None or dv is None:
        return Pulled(scale, None, None, d_tensors)
    return Pulled(scale, dv * (2.0 / pixels), (dm - scale * sum_dy) / pixels, d_tensors)
