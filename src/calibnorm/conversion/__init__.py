"""BatchNorm to any method and back, in place, with a plan and a report; and what training a converted network needs.

The files are called ``converting``, ``planning``, ..., because ``convert``, ``plan``, ... are the functions.
"""

from __future__ import annotations

from calibnorm.conversion.averaging import average_statistics
from calibnorm.conversion.converting import convert
from calibnorm.conversion.planning import plan
from calibnorm.conversion.reverting import revert
from calibnorm.conversion.summarizing import summary
from calibnorm.conversion.training import freeze_stats, param_groups

__all__ = ["average_statistics", "convert", "freeze_stats", "param_groups", "plan", "revert", "summary"]
