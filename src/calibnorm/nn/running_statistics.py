"""The running statistics of methods that keep more of them than two, or move them in their own way, or read them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from calibnorm.methods import Method
from calibnorm.nn import recomputation
from calibnorm.ops import Statistics, update_running
from calibnorm.ops.reference import accumulation_dtype, affine, moments
from calibnorm.ops.statistics import reduction_of
from calibnorm.ops.synchronized import Synchronized


def with_extra(running: Statistics, extra: Sequence[Statistics]) -> Statistics:
    """Return mean and variance of the channels and, behind them, of the extra statistics."""
    means, variances = zip(running, *extra, strict=True)
    return torch.cat(means), torch.cat(variances)


def named_copies(x: Tensor, mean: Tensor | None, var: Tensor | None, batches: Tensor | None) -> dict[str, Tensor]:
    """Return the buffers that are there by their names, as a backward may read them after they have moved."""
    named = {"running_mean": mean, "running_var": var, "num_batches_tracked": batches}
    return recomputation.copies({name: buffer for name, buffer in named.items() if buffer is not None}, x)


def subject(method: Method, x: Tensor, gates: Mapping[str, Tensor]) -> Tensor:
    """Return what the running statistics are about: x, or x with its centre calibrated; differentiable."""
    shape, dtype = (-1, *[1] * (x.ndim - 2)), accumulation_dtype(x.dtype)
    around = {name: gate.to(dtype).reshape(shape) for name, gate in gates.items() if name in method.spatial}
    moved = method.before_steps(x, around)
    m, v = moments(moved)
    params = {name: gate.to(m.dtype) for name, gate in gates.items()}
    mean, _ = method.without_spatial().instance_stats(m, v, params)
    return affine(moved, m, torch.ones_like(m), mean[:, : x.shape[1]]).to(x.dtype)


def move(
    method: Method,
    x: Tensor,
    statistics: Statistics,
    running: Statistics,
    extra: Sequence[Statistics],
    momentum: float | Tensor,
    batches: Tensor | None,
    synchronized: Synchronized | None = None,
) -> None:
    """Move every buffer, in place, towards the statistics that ``method`` found in x, and count the batch.

    Ghost batches move them one after the other, each with the momentum of a batch (Hoffer et al., Algorithm 1); where
    ``momentum=None`` averages over batches, those of a batch weigh together as one.
    """
    n, channels = x.shape[:2]
    reduction = synchronized or reduction_of(method)
    assert reduction is not None
    shares = reduction.shares(statistics, n, math.prod(x.shape[2:]))
    for i, (mean, var, instances, values) in enumerate(shares, 1):
        weight = momentum
        if isinstance(momentum, Tensor) and len(shares) > 1:
            weight = momentum / (len(shares) * (1.0 - momentum) + i * momentum)
        at = channels
        for extra_mean, extra_var in extra:  # one value an instance
            part = slice(at, at + len(extra_mean))
            update_running(extra_mean, extra_var, mean[..., part], var[..., part], weight, instances)
            at = part.stop
        own = mean[..., :channels], var[..., :channels]
        update_running(*running, *own, weight, values, batches if i == len(shares) else None)
