"""The running statistics of one forward: read together, and moved after everything that can fail."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from calibnorm.methods import Method
from calibnorm.ops import Statistics, update_running
from calibnorm.ops.statistics import reduction_of


class Running(NamedTuple):
    """The buffers of a layer."""

    mean: Tensor
    var: Tensor
    batches: Tensor | None
    extra: tuple[Statistics, ...]
    """Those of the method's extra statistics."""

    def joined(self) -> Statistics:
        """Return mean and variance of the channels and, behind them, of the extra statistics."""
        if not self.extra:
            return self.mean, self.var
        means, variances = zip((self.mean, self.var), *self.extra, strict=True)
        return torch.cat(means), torch.cat(variances)

    def copies(self) -> dict[str, Tensor]:
        """Return the buffers by their names, to be read in a backward after they have moved."""
        copies = {"running_mean": self.mean.clone(), "running_var": self.var.clone()}
        return copies if self.batches is None else copies | {"num_batches_tracked": self.batches.clone()}

    def move(self, method: Method, statistics: Statistics, momentum: float | Tensor, x: Tensor) -> None:
        """Move every buffer, in place, towards the statistics that ``method`` found in x, and count the batch.

        Ghost batches move them one after the other, each with the momentum of a batch (Hoffer et al., Algorithm 1);
        where ``momentum=None`` averages over batches, those of a batch weigh together as one.
        """
        n, channels = x.shape[:2]
        if method.ghost_size is None and not self.extra:  # nearly always, and slices would cost it 2 us
            update_running(self.mean, self.var, *statistics, momentum, x.numel() // channels, self.batches)
            return
        pixels = x.numel() // (n * channels)
        reduction = reduction_of(method)
        assert reduction is not None
        shares = reduction.shares(statistics, n)
        for i, share in enumerate(shares, 1):
            weight = momentum
            if isinstance(momentum, Tensor) and len(shares) > 1:
                weight = momentum / (len(shares) * (1.0 - momentum) + i * momentum)
            mean, var, at = share.mean, share.var, channels
            count = self.batches if i == len(shares) else None
            for running_mean, running_var in self.extra:  # one value an instance
                part = slice(at, at + len(running_mean))
                update_running(running_mean, running_var, mean[part], var[part], weight, share.instances)
                at = part.stop
            update_running(
                self.mean, self.var, mean[:channels], var[:channels], weight, share.instances * pixels, count
            )
