"""BatchNorm to any method and back, in place, with a plan and a report.

The files are called ``converting``, ``planning`` and so on, because ``convert`` and ``plan`` are the functions.
"""

from __future__ import annotations

from calibnorm.conversion.converting import convert
from calibnorm.conversion.planning import plan
from calibnorm.conversion.reverting import revert
from calibnorm.networks import average_statistics, freeze_stats, param_groups, summary

__all__ = ["average_statistics", "convert", "freeze_stats", "param_groups", "plan", "revert", "summary"]
