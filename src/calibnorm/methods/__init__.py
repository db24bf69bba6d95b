"""The methods: one file each, all pure functions of (N, C) moments. ``METHODS`` lists them by name."""

from __future__ import annotations

from calibnorm.methods.base import Batch, Instance, Method, Parameter, Params, inverse_std, reparameterize, safe_sqrt
from calibnorm.methods.bn import BN
from calibnorm.methods.iebn import IEBN
from calibnorm.methods.rbn import RBN
from calibnorm.methods.registry import METHODS, build, methods, not_an_option

__all__ = [
    "BN",
    "IEBN",
    "METHODS",
    "RBN",
    "Batch",
    "Instance",
    "Method",
    "Parameter",
    "Params",
    "build",
    "inverse_std",
    "methods",
    "not_an_option",
    "reparameterize",
    "safe_sqrt",
]
