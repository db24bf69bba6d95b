"""The methods: one file each, all pure functions of (N, C) moments. ``METHODS`` lists them by name."""

from __future__ import annotations

from calibnorm.methods.base import Batch, Instance, Method, Parameter, Params
from calibnorm.methods.bn import BN
from calibnorm.methods.iebn import IEBN
from calibnorm.methods.rbn import RBN

METHODS: dict[str, type[Method]] = {method.name: method for method in (BN, IEBN, RBN)}

__all__ = ["BN", "IEBN", "METHODS", "RBN", "Batch", "Instance", "Method", "Parameter", "Params", "methods"]


def methods() -> list[str]:
    """Return the names of the normalization methods.

    >>> import calibnorm as cn
    >>> cn.methods()
    ['bn', 'iebn', 'rbn']
    """
    return list(METHODS)
