"""Normalizations as text, such as ``iebn:position=both,init=(0,1)``: a method and its options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import calibnorm as cn
from calibnorm.errors import Setting, UsageError
from calibnorm.lab.models import options

# IEBN's authors leave the norm of a shortcut's projection plain: so does their ResNet for CIFAR (gbup-group/IEBN on
# GitHub), and only so do the counts of their Table 1 come out for ResNeXt-29 on CIFAR-100 and for ResNet-50 and
# ResNeXt-50 on ImageNet. The paper's text says that all are replaced.
_SKIPS = {"iebn": "shortcut"}
# Whether SE has biases is the network's to say unless the text does, and what IEBN's gate sees depends on whether the
# network is a trained one (cn.convert with preserve): what the text says is kept, the default too.
_BY_NETWORK = ("biases", "gate_input")


@dataclass(frozen=True)
class Norm:
    """A method with its options; ``str`` gives the canonical text, without the options that are the defaults.

    Args:
        method: One of ``cn.methods()``; a UsageError refuses others, as it does unknown options and values.
        options: Options of the method by name, such as ``{"init": (0.0, 1.0)}``; and four of the network's norms:
            ``skip``, ``"shortcut"`` or None: whether the norms of shortcut branches stay plain. They do in ``"iebn"``
            unless told otherwise;
            ``preserve``: whether trained weights keep their function; they do where the method allows it;
            ``statistics``, ``"batch"`` or ``"frozen"``: frozen ones normalize in training too, as ``cn.freeze_stats``;
            ``gate_rate``: how many times the learning rate the gates have; with 0 they stay as they are.

    >>> str(Norm("bn", {"gamma_init": 0.269})), str(Norm("rbn", {"scaling": True}))
    ('bn:gamma_init=0.269', 'rbn')
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the options, and put them into the one order and form that equal norms share."""
        given = dict(self.options)
        known = options.known(self.method)
        for name in given:
            options.check_name(self.method, name, known)
        for name, values in options.NETWORK.items():
            if name in given and values is not float and given[name] not in values.values():
                allowed = " or ".join(map(repr, values.values()))
                raise UsageError(Setting("norm", self.method), f"{name}={given[name]!r} must be {allowed}")
        if not 0 <= self.gate_rate < float("inf"):
            raise UsageError(Setting("norm", self.method), f"gate_rate={self.gate_rate} must be 0 or a positive number")
        try:
            cn.norm_layer(self.method, **self.layer_options)
        except (TypeError, ValueError) as error:
            raise UsageError(Setting("norm", self.method), f"{error}") from error
        own = {"skip": _SKIPS.get(self.method), "preserve": None, "statistics": "batch", "gate_rate": 1.0}
        defaults = own | options.defaults(self.method)
        plain = {name: options.plain(given[name]) for name in known if name in given}
        kept = {n: value for n, value in plain.items() if n in _BY_NETWORK or value != options.plain(defaults[n])}
        object.__setattr__(self, "options", kept)

    @property
    def skip(self) -> str | None:
        """What ``cn.convert`` leaves: ``"shortcut"``, or None."""
        found: str | None = self.options.get("skip", _SKIPS.get(self.method))
        return found

    @property
    def gate_rate(self) -> float:
        """How many times the learning rate the gates have."""
        rate: float = self.options.get("gate_rate", 1.0)
        return rate

    @property
    def layer_options(self) -> dict[str, Any]:
        """The options of the method's layer."""
        return {name: value for name, value in self.options.items() if name not in options.NETWORK}

    def __str__(self) -> str:
        """Return the text that :func:`parse_norm` reads."""
        listed = ",".join(f"{name}={options.text(value)}" for name, value in self.options.items())
        return f"{self.method}:{listed}" if listed else self.method

    def __hash__(self) -> int:
        """Equal norms have equal texts."""
        return hash(str(self))


def parse_norm(norm: str | Norm) -> Norm:
    """Return the normalization that a text names: ``method`` or ``method:option=value,...``.

    Names and types are those of the method's own signature, so that a method of ``cn.register_method`` can be written
    too. Values are numbers, ``true`` and ``false``, words, ``none``, numbers in parentheses, and for ``over`` a method
    with its own options in parentheses, ``rbn:over=gn(groups=8)``. Four options belong to the
    network: ``skip=shortcut`` leaves the norms of shortcut branches plain, ``skip=none`` does not; ``preserve=false``
    converts trained weights without keeping their function; ``statistics=frozen`` holds the statistics, and
    ``gate_rate=0.01`` lets the gates learn at a hundredth of the learning rate.

    Raises:
        UsageError: The text is no such thing, or the method, an option or a value is not known.

    >>> parse_norm("iebn:init=(0,1)")
    Norm(method='iebn', options={'init': (0.0, 1.0)})
    """
    if isinstance(norm, Norm):
        return norm
    if not isinstance(norm, str):
        raise UsageError(Setting("norm", norm), "must be a text such as 'iebn' or 'bn:gamma_init=0.269'")
    method, colon, listed = (piece.strip() for piece in norm.partition(":"))
    known = options.known(method)
    if colon and not listed:
        raise UsageError(Setting("norm", norm), f"nothing follows the colon; write {method}, or {method}:option=value")
    return Norm(method, options.parse(norm, method, known, listed))
