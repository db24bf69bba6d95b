"""calibnorm: batch normalization calibrated by each instance, for any CNN in PyTorch."""

from __future__ import annotations

from calibnorm import _stopping  # noqa: F401  # isort: skip  # first: importing torch takes seconds
from calibnorm import inspect
from calibnorm.conversion import convert, plan, revert
from calibnorm.folding import fold, fold_plan
from calibnorm.fusion import fuse
from calibnorm.methods import methods
from calibnorm.networks import average_statistics, freeze_stats, param_groups, summary
from calibnorm.nn import norm_layer, register_method
from calibnorm.nn.built_in import *
from calibnorm.nn.built_in import __all__
from calibnorm.nn.functional import iebn, rbn
from calibnorm.ops import backends, use_backend

__version__ = "0.2.0"

__all__ += (
    "average_statistics",
    "backends",
    "convert",
    "fold",
    "fold_plan",
    "freeze_stats",
    "fuse",
    "iebn",
    "inspect",
    "methods",
    "norm_layer",
    "param_groups",
    "plan",
    "rbn",
    "register_method",
    "revert",
    "summary",
    "use_backend",
)
