"""Batch Renormalization (Ioffe, NeurIPS 2017, arXiv 1702.03275)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from calibnorm import _checks
from calibnorm.methods.base import Batch, Instance, Method, Params, inverse_std


@dataclass(frozen=True)
class BRN(Method):
    """``y = gamma * ((x - mu_B) / sd_B * r + d) + beta`` (Algorithm 1), mu and sd the running statistics.

    ``r = clip(sd_B / sd, 1 / r_max, r_max)`` and ``d = clip((mu_B - mu) / sd, -d_max, d_max)``, both held constant in
    the gradient. They tie a batch to the running statistics, which are ``running_mean`` and ``running_var`` among the
    tensors, as they were before this batch; without them the given statistics are used as they are, as at inference.

    With ``num_batches_tracked`` among the tensors, the limits open as in the paper's experiment: r_max 1
    and d_max 0, which is BN, for 5000 batches, then to 3 at 40,000 and to 5 at 25,000. The paper says "gradually";
    here that is linear. It keeps a moving average of sd_B; here, as in the whole library, it is torch's, of the
    unbiased variance.
    """

    name: ClassVar[str] = "brn"
    plain_in_eval = True  # the correction is a matter of training
    reads_running = True
    r_max: float = 3.0
    d_max: float = 5.0
    start: int = 5000
    r_batches: int = 40_000
    d_batches: int = 25_000

    def __post_init__(self) -> None:
        for name in ("r_max", "d_max"):
            _checks.real(name, getattr(self, name))
        if self.r_max < 1.0 or self.d_max < 0.0:
            raise ValueError(f"r_max={self.r_max} must be at least 1, and d_max={self.d_max} at least 0")
        for name in ("start", "r_batches", "d_batches"):
            if isinstance(getattr(self, name), bool) or not isinstance(getattr(self, name), int):
                raise TypeError(f"{name}={getattr(self, name)!r} must be an integer")
        if not 0 <= self.start < min(self.r_batches, self.d_batches):
            raise ValueError(
                f"start={self.start} must be at least 0 and below r_batches={self.r_batches} and "
                f"d_batches={self.d_batches}"
            )

    def limits(self, batches: Tensor | None) -> tuple[Tensor | float, Tensor | float]:
        """Return r_max and d_max after this many batches, a number in a tensor; the last ones for None."""
        if batches is None:
            return self.r_max, self.d_max
        r_part = ((batches - self.start) / (self.r_batches - self.start)).clamp(0.0, 1.0)
        d_part = ((batches - self.start) / (self.d_batches - self.start)).clamp(0.0, 1.0)
        return 1.0 + r_part * (self.r_max - 1.0), d_part * self.d_max

    def standardize(self, x: Instance, batch: Batch, p: Params) -> tuple[Tensor, Tensor]:
        """Return r / sd_B and r * (m - mu_B) / sd_B + d, before the noise attack."""
        if "running_mean" not in p:
            return batch.standardize(x.M)
        a, b = batch._replace(noise=None).standardize(x.M)
        r_max, d_max = (
            torch.as_tensor(t, dtype=a.dtype, device=a.device) for t in self.limits(p.get("num_batches_tracked"))
        )
        inverse = inverse_std(p["running_var"], batch.eps)
        r = torch.minimum(torch.maximum(inverse / inverse_std(batch.var, batch.eps), 1.0 / r_max), r_max).detach()
        d = torch.minimum(torch.maximum((batch.mean - p["running_mean"]) * inverse, -d_max), d_max).detach()
        return batch.attacked(a * r, b * r + d)
