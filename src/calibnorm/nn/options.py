"""The options of a layer's constructor: which there are, how they show, and what is said of one that is not there."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec

from calibnorm.methods import Method, not_an_option

P = ParamSpec("P")


def layer_options(init: Callable[..., object]) -> list[str]:
    """Return what a layer's constructor takes beside what torch's BatchNorm takes: its arguments by keyword alone."""
    arguments = inspect.signature(init).parameters.values()
    return [argument.name for argument in arguments if argument.kind is argument.KEYWORD_ONLY]


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


def signature(init: Callable[..., object], method: type[Method]) -> inspect.Signature:
    """Return a layer's signature: the arguments of every layer, with the method's options among the named ones."""
    _, *shared, _ = inspect.signature(init).parameters.values()  # without self and **options
    own = inspect.signature(method).parameters.values()
    named = [argument.replace(kind=inspect.Parameter.KEYWORD_ONLY) for argument in own]
    first = next(i for i, argument in enumerate(shared) if argument.kind is inspect.Parameter.KEYWORD_ONLY)
    return inspect.Signature([*shared[:first], *named, *shared[first:]])
