"""The passes over pixels, their gradient, and the choice of who runs them."""

from __future__ import annotations

from calibnorm.ops.autograd import normalize
from calibnorm.ops.coefficients import Call, Moving, Step
from calibnorm.ops.dispatch import backends, use_backend
from calibnorm.ops.running_statistics import update_running
from calibnorm.ops.statistics import Statistics, batch_statistics

__all__ = [
    "Call",
    "Moving",
    "Statistics",
    "Step",
    "backends",
    "batch_statistics",
    "normalize",
    "update_running",
    "use_backend",
]
