"""From the moments of instances to the statistics that a method standardizes with, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from calibnorm.methods import Method

Statistics = tuple[Tensor, Tensor]
"""Mean and biased variance of every channel, each (C,), or (N, C) where instances differ in them."""


class Share(NamedTuple):
    """The statistics that some instances share."""

    mean: Tensor
    var: Tensor
    instances: int | Tensor
    """How many they are; a number in a tensor where processes share statistics, as below."""
    values: int | Tensor
    """Values of a channel that they are statistics of."""


class Reduction(Protocol):
    """Over which instances statistics are taken: the one step of a layer where instances meet.

    It has a gradient of its own, which takes what forward found, so that a backward repeats nothing of it: what a
    forward exchanges between processes is exchanged once, and ``vjp`` exchanges its own cotangents.
    """

    def forward(self, mean_NC: Tensor, var_NC: Tensor) -> Statistics:
        """Return E and Var from the mean and variance of every plane; differentiable."""
        ...

    def vjp(self, mean_NC: Tensor, mean: Tensor, d_mean: Tensor, d_var: Tensor) -> tuple[Tensor, Tensor]:
        """Return dM and dV, (N, C), from dE and dVar; ``mean`` is the E that forward found."""
        ...

    def shares(self, statistics: Statistics, instances: int, pixels: int) -> list[Share]:
        """Return the statistics of everything that was normalized by itself, each (C,), in the batch's order."""
        ...


@dataclass(frozen=True)
class WholeBatch:
    """All instances share E and Var, (C,): ``dM = dE / N + 2 (M - E) dVar / N`` and ``dV = dVar / N``."""

    def forward(self, mean_NC: Tensor, var_NC: Tensor) -> Statistics:
        """Return :func:`batch_statistics`."""
        return batch_statistics(mean_NC, var_NC)

    def vjp(self, mean_NC: Tensor, mean: Tensor, d_mean: Tensor, d_var: Tensor) -> tuple[Tensor, Tensor]:
        """Return dM and dV."""
        n = len(mean_NC)
        d_var = d_var / n
        return d_mean / n + 2.0 * (mean_NC - mean) * d_var, d_var.expand_as(mean_NC)

    def shares(self, statistics: Statistics, instances: int, pixels: int) -> list[Share]:
        """Return the one."""
        return [Share(*statistics, instances, instances * pixels)]


@dataclass(frozen=True)
class GhostBatches:
    """Runs of ``size`` instances share E and Var, and so does what is left; both are (N, C)."""

    size: int

    def forward(self, mean_NC: Tensor, var_NC: Tensor) -> Statistics:
        """Return the statistics of every instance's ghost batch."""
        pairs = zip(torch.split(mean_NC, self.size), torch.split(var_NC, self.size), strict=True)
        each = [(mean, batch_statistics(mean, var)) for mean, var in pairs]
        mean, var = (torch.cat([found[i].expand_as(ghost) for ghost, found in each]) for i in (0, 1))
        return mean, var

    def vjp(self, mean_NC: Tensor, mean: Tensor, d_mean: Tensor, d_var: Tensor) -> tuple[Tensor, Tensor]:
        """Return dM and dV; an instance's dE and dVar are about the statistics of its ghost batch."""
        ghosts = zip(*(torch.split(t, self.size) for t in (mean_NC, mean, d_mean, d_var)), strict=True)
        each = [WholeBatch().vjp(ghost, e[0], d_e.sum(0), d_v.sum(0)) for ghost, e, d_e, d_v in ghosts]
        dm, dv = (torch.cat([pair[i] for pair in each]) for i in (0, 1))
        return dm, dv

    def shares(self, statistics: Statistics, instances: int, pixels: int) -> list[Share]:
        """Return those of the ghost batches."""
        mean, var = statistics
        firsts = range(0, instances, self.size)
        sizes = [min(self.size, instances - i) for i in firsts]
        return [Share(mean[i], var[i], n, n * pixels) for i, n in zip(firsts, sizes, strict=True)]


def reduction_of(method: Method) -> Reduction | None:
    """Return how a method's statistics are taken; None where no statistic of a batch enters it."""
    if not method.batch_statistics:
        return None
    return WholeBatch() if method.ghost_size is None else GhostBatches(method.ghost_size)


def batch_statistics(mean_NC: Tensor, var_NC: Tensor) -> Statistics:
    """Return the batch's mean and biased variance, (C,): ``mean_n M`` and ``mean_n V + mean_n (M - E)^2``."""
    # As in reference.moments: the mean of what is left mends the rounding of a large mean, and the variance around it.
    # All gradients go through `near` and `left`, and are exact so; hence `rest` is held constant.
    near = mean_NC.mean(0)
    left = mean_NC - near
    rest = left.mean(0).detach()
    between = (left.square().mean(0) - rest.square()).clamp_min(0.0)
    return near + rest, var_NC.mean(0) + between
