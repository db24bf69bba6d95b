"""The methods by name, and how options that are plain data become one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from calibnorm import _checks
from calibnorm.methods.an import AN
from calibnorm.methods.base import Method
from calibnorm.methods.bcn import BCN
from calibnorm.methods.bn import BN
from calibnorm.methods.brn import BRN
from calibnorm.methods.composed import Composed
from calibnorm.methods.frn import FRN
from calibnorm.methods.ghost import GhostBN
from calibnorm.methods.group import GN, IN, LN
from calibnorm.methods.iebn import IEBN
from calibnorm.methods.ilm import ILM
from calibnorm.methods.rbn import RBN
from calibnorm.methods.se import SE
from calibnorm.methods.sn import SN

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (BN, IEBN, RBN, SE, IN, GN, LN, SN, BCN, ILM, FRN, AN, GhostBN, BRN)
}

Over = str | Mapping[str, Any] | None
"""What a method's standardization is replaced by: a name, or ``{"method": name, **options}``, as JSON can hold it."""


def methods() -> list[str]:
    """Return the names of the normalization methods, registered ones last.

    >>> import calibnorm as cn
    >>> cn.methods()
    ['bn', 'iebn', 'rbn', 'se', 'in', 'gn', 'ln', 'sn', 'bcn', 'ilm', 'frn', 'an', 'ghost', 'brn']
    """
    return list(METHODS)


def build(kind: type[Method], over: Over = None, **options: Any) -> Method:
    """Return a method with its options, over another one where ``over`` says so.

    Raises:
        TypeError: An option is not known, or ``over`` is neither a name nor a mapping.
        ValueError: A name or a value is not known, or the two methods do not compose.
    """
    method = kind(**options)
    if over is None:
        return method
    if not isinstance(over, str | Mapping):
        raise TypeError(f"over={over!r} must be a method's name, or a mapping such as {{'method': 'gn', 'groups': 8}}")
    spec = {"method": over} if isinstance(over, str) else dict(over)
    if "method" not in spec:
        raise ValueError(f"over={over!r} must name a method, such as {{'method': 'gn', 'groups': 8}}")
    name = spec.pop("method")
    _checks.choice("over", name, METHODS)
    base = METHODS[str(name)]
    known = [field.name for field in fields(base)]
    for option in spec:
        if option not in known and option != "over":
            raise TypeError(f"over: {not_an_option(option, base.name, known)}")
    return Composed(method, build(base, **spec))


def not_an_option(name: str, method: str, known: list[str]) -> str:
    """Return the message for an option that a method does not have.

    >>> not_an_option("gamma_init", "rbn", ["centering", "scaling"])
    "'gamma_init' is not an option of 'rbn', which takes centering, scaling; 'bn' has it"
    """
    owners = [repr(owner) for owner, kind in METHODS.items() if name in (field.name for field in fields(kind))]
    takes = f"which takes {', '.join(known)}" if known else "which has none"
    return f"{name!r} is not an option of {method!r}, {takes}{_have_it(owners)}"


def _have_it(owners: list[str]) -> str:
    if len(owners) < 2:
        return f"; {owners[0]} has it" if owners else ""
    return f"; {', '.join(owners[:-1])} and {owners[-1]} have it"
