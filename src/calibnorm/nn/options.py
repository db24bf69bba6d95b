"""Options that a layer does not have: refused with the options that it has, and the methods that have the one given."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import ParamSpec

from calibnorm.methods import METHODS

P = ParamSpec("P")


def layer_options(init: Callable[..., object]) -> list[str]:
    """Return what a layer's constructor takes beside what torch's BatchNorm takes: its arguments by keyword alone."""
    arguments = inspect.signature(init).parameters.values()
    return [argument.name for argument in arguments if argument.kind is argument.KEYWORD_ONLY]


def not_an_option(name: str, method: str, known: list[str]) -> str:
    """Return the message for an option that a method does not have.

    >>> not_an_option("gamma_init", "rbn", ["centering", "scaling"])
    "'gamma_init' is not an option of 'rbn', which takes centering, scaling; 'bn' has it"
    """
    owners = [repr(owner) for owner, kind in METHODS.items() if name in (field.name for field in fields(kind))]
    has = f"; {' and '.join(owners)} {'has' if len(owners) == 1 else 'have'} it" if owners else ""
    return f"{name!r} is not an option of {method!r}, which takes {', '.join(known)}{has}"


def checked(init: Callable[P, None]) -> Callable[P, None]:
    """Make a layer's constructor name an unknown option, as Python's own message does not know the other methods."""
    known, accepted = layer_options(init), inspect.signature(init).parameters

    @functools.wraps(init)
    def checked_init(*args: P.args, **options: P.kwargs) -> None:
        for name in options:
            if name not in accepted:
                layer = type(args[0])
                raise TypeError(f"{layer.__name__}: {not_an_option(name, layer.method_type.name, known)}")  # type: ignore[attr-defined]
        init(*args, **options)

    return checked_init
