"""Moving the running statistics towards those of a batch."""

from __future__ import annotations

from torch import Tensor

from calibnorm.ops import dispatch, reference
from calibnorm.ops.inputs import transformed


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
    buffers: tuple[Tensor, ...] = (running_mean, running_var)
    if num_batches_tracked is not None:
        buffers = (*buffers, num_batches_tracked)
    if isinstance(count, Tensor) and count.is_cpu and not transformed(count):
        momentum = momentum if count else 0.0
        count = max(int(count), 2)
    if isinstance(momentum, float) and isinstance(count, int) and not transformed(mean):
        dispatch.update_running(buffers, mean, var, momentum, count / (count - 1))
        return
    if isinstance(count, Tensor):  # not read: on a GPU that would wait for the exchange
        momentum = momentum * (count > 0).to(mean.dtype)
        count = count.clamp_min(2.0)
    reference.update_running(buffers, mean, var, momentum, count / (count - 1))
