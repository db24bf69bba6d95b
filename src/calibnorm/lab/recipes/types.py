"""Types of settings: whether a value that was read is of one, and what one is in words."""

from __future__ import annotations

from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin


def fits(value: object, hint: Any) -> bool:
    """Return whether a value read from JSON is of a type; a whole number is a float, too, and True is no number."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is UnionType:
        return any(fits(value, arg) for arg in args)
    if origin is Literal:
        return isinstance(value, str) and value in args
    if origin is tuple:
        kinds = [args[0]] * len(value) if isinstance(value, tuple) and args[-1] is ... else args
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(fits, value, kinds))
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint)


def described(hint: Any, nothing: str = "null") -> str:
    """Return a field's type in words.

    Args:
        hint: The type.
        nothing: How None is written.

    >>> described(float | None), described(tuple[Literal["bn", "iebn"], ...])
    ('a number or null', 'one or more of bn, iebn')
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin is UnionType:
        return " or ".join(described(arg, nothing) for arg in args)
    if origin is Literal:
        return " or ".join(map(str, args))
    if origin is tuple and get_origin(args[0]) is Literal:
        return f"one or more of {', '.join(get_args(args[0]))}"
    if origin is tuple:
        several = {str: "one or more texts", float: "one or more numbers"}.get(args[0], "whole numbers")
        return several if args[-1] is ... else "two numbers"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}
    return words.get(hint, nothing)
