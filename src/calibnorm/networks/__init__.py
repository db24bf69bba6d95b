"""What reads or prepares a network whatever its norms are; nothing here converts one.

The files are called ``finding``, ``summarizing``, and so on, because ``summary`` and the others are the functions.
"""

from __future__ import annotations

from calibnorm.networks.averaging import average_statistics
from calibnorm.networks.freezing import freeze_stats
from calibnorm.networks.grouping import param_groups
from calibnorm.networks.summarizing import summary

__all__ = ["average_statistics", "freeze_stats", "param_groups", "summary"]
