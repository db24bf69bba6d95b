"""The coefficient step between the passes: (N, C) numbers in, (N, C) numbers out, and back.

This is the generic step, which calls the method's own functions and lets autograd find their gradient. A backend may
bring a fused one for the methods it knows (:class:`Coefficients`): a layer's forty small torch operations take as long
as its passes over the pixels where these are few. A fused step is checked against the generic one.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from calibnorm._checks import Noise
from calibnorm.methods import Batch, Instance, Method
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


class Gradients(NamedTuple):
    """What the backward pass needs from the coefficient step."""

    scale: Tensor
    slope: Tensor | None
    """``2 * dv / S``, or None where x needs no gradient."""
    offset: Tensor | None
    """``(dm - scale * S1) / S``, or None where x needs no gradient."""
    tensors: list[Tensor | None]
    """Gradients of the learnable tensors, None where none is wanted."""


class Coefficients(Protocol):
    """A coefficient step and its vector-Jacobian product, for the steps it takes."""

    def takes(self, step: Step) -> bool: ...  # noqa: D102
    def forward(  # noqa: D102
        self, step: Step, m: Tensor, v: Tensor, statistics: Statistics | None, tensors: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Statistics]: ...
    def vjp(  # noqa: D102
        self,
        step: Step,
        m: Tensor,
        v: Tensor,
        statistics: Statistics | None,
        tensors: tuple[Tensor, ...],
        sums: tuple[Tensor, Tensor],
        pixels: int,
        wanted: tuple[bool, ...],
    ) -> Gradients: ...


class Generic:
    """The step of any method, by its own functions."""

    def takes(self, step: Step) -> bool:
        """Take every step."""
        return True

    def forward(
        self, step: Step, m: Tensor, v: Tensor, statistics: Statistics | None, tensors: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Statistics]:
        """Return scale, shift and the statistics used."""
        return step(m, v, statistics, tensors)

    def vjp(
        self,
        step: Step,
        m: Tensor,
        v: Tensor,
        statistics: Statistics | None,
        tensors: tuple[Tensor, ...],
        sums: tuple[Tensor, Tensor],
        pixels: int,
        wanted: tuple[bool, ...],
    ) -> Gradients:
        """Return the gradients from S1 and S2; ``wanted`` is about x and then the tensors."""
        sum_dy, sum_dy_centred = sums
        needed = (wanted[0], *wanted)
        leaves = [t.detach().requires_grad_(want) for t, want in zip((m, v, *tensors), needed, strict=True)]
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
        scale = scale.detach()
        if dm is None or dv is None:
            return Gradients(scale, None, None, d_tensors)
        return Gradients(scale, dv * (2.0 / pixels), (dm - scale * sum_dy) / pixels, d_tensors)


GENERIC = Generic()
