"""From the moments of instances to the statistics of a batch."""

from __future__ import annotations

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
