"""calibnorm: batch normalization calibrated by each instance, for any CNN in PyTorch."""

from __future__ import annotations

from calibnorm.conversion import convert, freeze_stats, param_groups, plan, revert, summary
from calibnorm.fusion import fuse
from calibnorm.methods import methods
from calibnorm.nn import BN1d, BN2d, BN3d, IEBN1d, IEBN2d, IEBN3d, RBN1d, RBN2d, RBN3d, norm_layer
from calibnorm.nn.functional import iebn, rbn
from calibnorm.ops import backends, use_backend

__version__ = "0.1.0"

__all__ = [
    "BN1d",
    "BN2d",
    "BN3d",
    "IEBN1d",
    "IEBN2d",
    "IEBN3d",
    "RBN1d",
    "RBN2d",
    "RBN3d",
    "backends",
    "convert",
    "freeze_stats",
    "fuse",
    "iebn",
    "methods",
    "norm_layer",
    "param_groups",
    "plan",
    "rbn",
    "revert",
    "summary",
    "use_backend",
]
