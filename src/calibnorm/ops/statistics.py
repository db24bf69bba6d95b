"""From the moments of instances to the statistics of a batch."""

from __future__ import annotations

import torch
from torch import Tensor


def batch_statistics(mean_NC: Tensor, var_NC: Tensor) -> tuple[Tensor, Tensor]:
    """Return the batch's mean and biased variance, (C,): ``mean_n M`` and ``mean_n V + mean_n (M - E)^2``."""
    # As in reference.moments: the mean of what is left mends the rounding of a large mean, and the variance around it.
    # All gradients go through `near` and `left`, and are exact so; hence `rest` is held constant.
    near = mean_NC.mean(0)
    left = mean_NC - near
    rest = left.mean(0).detach()
    between = (left.square().mean(0) - rest.square()).clamp_min(0.0)
    return near + rest, var_NC.mean(0) + between


def ghost_statistics(mean_NC: Tensor, var_NC: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance, (N, C), of every instance's ghost batch: a run of ``size``, or what is left."""
    pairs = zip(mean_NC.split(size), var_NC.split(size), strict=True)
    each = [(len(mean), *batch_statistics(mean, var)) for mean, var in pairs]
    mean, var = (torch.cat([row[i].expand(row[0], -1) for row in each]) for i in (1, 2))
    return mean, var
