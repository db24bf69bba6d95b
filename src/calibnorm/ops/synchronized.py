"""Statistics of the batches of several processes: one collective forward, one back.

Both carry numbers of the size of a channel. Forward every process sends its counts, means and variances, and every
process merges what it received in the order of the ranks: all find the same bits, and a large mean loses nothing, as it
would in sums of squares. (torch's SyncBatchNorm sends the inverse standard deviation in the input's dtype.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from calibnorm.ops.inputs import transformed
from calibnorm.ops.statistics import Share, Statistics, batch_statistics

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Synchronized:
    """All instances of all processes of a group share E and Var, ``(C,)``.

    With W the values of all processes and S those of a plane here, ``dM = S (dE + 2 (M - E) dVar) / W`` and
    ``dV = S dVar / W``, where dE and dVar are summed over the processes. Gradients are those of the sum of the
    processes' losses. An instance counts as often as it has pixels, its extra statistics (those behind the channels)
    once.

    Made for one call, because the counts that forward finds belong to its gradient.

    Args:
        group: The processes.
        channels: C; what M has beyond are extra statistics.
        pixels: S of this process; processes may differ in it.
    """

    def __init__(self, group: ProcessGroup, channels: int, pixels: int) -> None:
        self.group = group
        self.channels = channels
        self.pixels = pixels
        self.values: Tensor | None = None
        """Values of a channel, and of an extra statistic, in all processes, (2,): set by forward."""

    def forward(self, mean_NC: Tensor, var_NC: Tensor) -> Statistics:
        """Return E and Var of all processes; differentiable to any order. All must call it."""
        mean, var, self.values = _Exchanged.apply(mean_NC, var_NC, self)
        return mean, var

    def vjp(self, mean_NC: Tensor, mean: Tensor, d_mean: Tensor, d_var: Tensor) -> tuple[Tensor, Tensor]:
        """Return dM and dV from this process's dE and dVar; all must call it, after forward."""
        assert self.values is not None
        return self.pull_back(mean_NC, mean, d_mean, d_var, self.values)

    def shares(self, statistics: Statistics, instances: int, pixels: int) -> list[Share]:
        """Return the one, of all processes; the numbers of this one are not needed."""
        assert self.values is not None
        return [Share(*statistics, self.values[1], self.values[0])]

    def merge(self, mean_NC: Tensor, var_NC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return E, Var and the values they are of."""
        instances, columns = mean_NC.shape
        if instances * self.pixels:
            mean, var = batch_statistics(mean_NC, var_NC)
        else:  # nothing to say, but the others wait
            mean = var = mean_NC.new_zeros(columns)
        return merged(self.gather(mean, var, instances), self.channels)

    def gather(self, mean: Tensor, var: Tensor, instances: int) -> Tensor:
        """Return values, instances, E and Var of every process, (R, 2 + 2 C): the collective of a forward."""
        counts = [mean.new_full((1,), n) for n in (instances * self.pixels, instances)]
        return _all_gather(torch.cat((*counts, mean, var)), self.group)

    def pull_back(
        self, mean_NC: Tensor, mean: Tensor, d_mean: Tensor, d_var: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return dM and dV."""
        return spread(mean_NC, mean, self.sum(d_mean, d_var), values, self.pixels, self.channels)

    def sum(self, d_mean: Tensor, d_var: Tensor) -> Tensor:
        """Return dE and dVar of all processes, (2, C): the collective of a backward."""
        return _Summed.apply(torch.stack((d_mean, d_var)), self.group)  # type: ignore[no-any-return]


def merged(received: Tensor, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return E, Var and the values they are of, from what :meth:`Synchronized.gather` received."""
    columns = received.shape[1] // 2 - 1
    counts_R2, mean_RC, var_RC = torch.split(received, [2, columns, columns], dim=1)
    values = counts_R2.sum(0)
    share_R2 = counts_R2 / values.clamp_min(1.0)
    share_RC = _columns(share_R2[:, :1], share_R2[:, 1:], channels, columns)
    # As in batch_statistics: the mean of what is left mends the rounding of a large mean.
    near = (share_RC * mean_RC).sum(0)
    left = mean_RC - near
    rest = (share_RC * left).sum(0)
    between = ((share_RC * left.square()).sum(0) - rest.square()).clamp_min(0.0)
    return near + rest, (share_RC * var_RC).sum(0) + between, values


def spread(
    mean_NC: Tensor, mean: Tensor, total: Tensor, values: Tensor, pixels: int | Tensor, channels: int
) -> tuple[Tensor, Tensor]:
    """Return dM and dV from dE and dVar of all processes, (2, C)."""
    each = values.clamp_min(1.0).reciprocal()
    d_mean, d_var = (_columns(pixels * each[:1], each[1:], channels, len(mean)) * total).unbind()
    return d_mean + 2.0 * (mean_NC - mean) * d_var, d_var.expand_as(mean_NC)


def _columns(of_channels: Tensor, of_extra: Tensor, channels: int, columns: int) -> Tensor:
    """Return (..., columns) from a number of the channels, (..., 1), and one of the extra statistics."""
    first = of_channels.expand(*of_channels.shape[:-1], channels)
    if columns == channels:
        return first
    return torch.cat((first, of_extra.expand(*of_extra.shape[:-1], columns - channels)), dim=-1)


class _Exchanged(torch.autograd.Function):
    """E, Var and the values they are of, as functions of M and V."""

    @staticmethod
    def forward(ctx: Any, mean_NC: Tensor, var_NC: Tensor, how: Synchronized) -> tuple[Tensor, Tensor, Tensor]:
        mean, var, values = how.merge(mean_NC, var_NC)
        ctx.save_for_backward(mean_NC, mean, values)
        ctx.mark_non_differentiable(values)
        ctx.how = how
        return mean, var, values

    @staticmethod
    def backward(ctx: Any, d_mean: Tensor, d_var: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor, None]:
        mean_NC, mean, values = ctx.saved_tensors
        return *ctx.how.pull_back(mean_NC, mean, d_mean, d_var, values), None


class _Summed(torch.autograd.Function):
    """The sum over the processes, whose gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return _all_reduce(t.clone(), group)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, None]:
        return _Summed.apply(d, ctx.group), None


# The group's own calls took 250 and 300 us where the operators under torch's functional collectives, which compile,
# took 330 and 340: two gloo processes on two busy cores.


def _all_gather(t: Tensor, group: ProcessGroup) -> Tensor:
    """Return every process's t, (R, *t.shape), in the order of the ranks."""
    if transformed(t):
        operators = torch.ops._c10d_functional
        gathered = operators.all_gather_into_tensor(t[None].contiguous(), group.size(), group.group_name)
        received: Tensor = operators.wait_tensor(gathered)
        return received
    received = t.new_empty((group.size(), *t.shape))
    group.allgather([list(received.unbind())], [t.contiguous()]).wait()
    return received


def _all_reduce(t: Tensor, group: ProcessGroup) -> Tensor:
    """Return the sum over the processes; t may be it."""
    t = t.contiguous()
    if transformed(t):
        operators = torch.ops._c10d_functional
        total: Tensor = operators.wait_tensor(operators.all_reduce(t, "sum", group.group_name))
        return total
    group.allreduce([t]).wait()
    return t
