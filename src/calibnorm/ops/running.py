"""Moving the running statistics towards those of a batch."""

from __future__ import annotations

from torch import Tensor
from torch.autograd.graph import increment_version

from calibnorm.ops import cpu, dispatch


def update_running(
    running_mean: Tensor,
    running_var: Tensor,
    mean: Tensor,
    var: Tensor,
    momentum: float | Tensor,
    count: int,
    num_batches_tracked: Tensor | None = None,
) -> None:
    """Move the running statistics, in place, towards a batch's mean and unbiased variance, and count the batch.

    Args:
        running_mean: (C,), changed in place.
        running_var: (C,), changed in place.
        mean: The batch's mean, (C,).
        var: The batch's biased variance, (C,).
        momentum: Weight of the batch, as torch defines it: ``running = (1 - momentum) * running + momentum * batch``.
        count: Values a channel in the batch.
        num_batches_tracked: Increased by one in place, or None.
    """
    if isinstance(momentum, float) and not dispatch.transformed(mean):
        moved: tuple[Tensor, ...] = (running_mean, running_var)
        if num_batches_tracked is not None:
            moved = (*moved, num_batches_tracked)
        # A tenth of the time of the eight torch operations below, which were a quarter of a small layer's.
        if cpu.update_running(moved, mean, var, momentum, count / (count - 1)):
            for buffer in moved:
                increment_version(buffer)
            return
    # detach rather than no_grad: torch.export cannot save a graph that switches gradients off in its midst.
    mean, var = mean.detach(), var.detach() * (count / (count - 1))
    running_mean.lerp_(mean.to(running_mean.dtype), momentum)
    running_var.lerp_(var.to(running_var.dtype), momentum)
    if num_batches_tracked is not None:
        num_batches_tracked.add_(1)
