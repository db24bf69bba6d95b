"""Moving the running statistics towards those of a batch."""

from __future__ import annotations

from torch import Tensor
from torch.autograd.graph import increment_version

from calibnorm.ops import cpu, dispatch
from calibnorm.ops.triton import layers


def update_running(
    running_mean: Tensor,
    running_var: Tensor,
    mean: Tensor,
    var: Tensor,
    momentum: float | Tensor,
    count: int | Tensor,
    num_batches_tracked: Tensor | None = None,
) -> None:
    """Move the running statistics, in place, towards a batch's mean and unbiased variance, and count the batch.

    Args:
        running_mean: (C,), changed in place.
        running_var: (C,), changed in place.
        mean: The batch's mean, (C,).
        var: The batch's biased variance, (C,).
        momentum: Weight of the batch, as torch defines it: ``running = (1 - momentum) * running + momentum * batch``.
        count: Values a channel in the batch; a number in a tensor where processes share it, whose 0 moves nothing.
        num_batches_tracked: Increased by one in place, or None.
    """
    if isinstance(momentum, float) and isinstance(count, int) and not dispatch.transformed(mean):
        moved: tuple[Tensor, ...] = (running_mean, running_var)
        if num_batches_tracked is not None:
            moved = (*moved, num_batches_tracked)
        # A tenth of the time of the eight torch operations below, which were a quarter of a small layer's; on a GPU,
        # one launch instead of eight.
        for update in (cpu.update_running, layers.update_running):
            if update(moved, mean, var, momentum, count / (count - 1)):
                for buffer in moved:
                    increment_version(buffer)
                return
    # detach rather than no_grad: torch.export cannot save a graph that switches gradients off in its midst.
    if isinstance(count, Tensor):  # never read: on a GPU that would wait for the exchange
        momentum = momentum * (count > 0).to(mean.dtype)
        count = count.clamp_min(2.0)
    mean, var = mean.detach(), var.detach() * (count / (count - 1))
    for running, found in ((running_mean, mean), (running_var, var)):
        if isinstance(momentum, Tensor):  # which lerp wants in the dtype of the rest
            running.copy_(running.to(mean.dtype).lerp(found, momentum.to(mean.dtype)))
        else:
            running.lerp_(found.to(running.dtype), momentum)
    if num_batches_tracked is not None:
        num_batches_tracked.add_(1)
