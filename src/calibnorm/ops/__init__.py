"""The passes over pixels, their gradient, and the choice of who runs them."""

from __future__ import annotations

from calibnorm.ops.autograd import Statistics, Step, normalize
from calibnorm.ops.statistics import batch_statistics, update_running

__all__ = ["Statistics", "Step", "batch_statistics", "normalize", "update_running"]
