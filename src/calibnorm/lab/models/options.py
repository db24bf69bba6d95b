"""The options of a method as text; their names and types are those of its signature, and nothing is evaluated."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from typing import Any, Union, get_args, get_origin, get_type_hints

import calibnorm as cn
from calibnorm.errors import ALIKE, Setting, UsageError
from calibnorm.methods import not_an_option
from calibnorm.nn import layer_type
from calibnorm.nn.arguments import layer_options

NETWORK: dict[str, Any] = {
    "skip": {"shortcut": "shortcut", "none": None},
    "preserve": {"true": True, "false": False},
    "statistics": {"batch": "batch", "frozen": "frozen"},
    "gate_rate": float,
}
"""Options of a network's norm beside those of its layers: what each may be, by its text, or its type."""

# What a layer takes and a network's norm does not, with what to do instead.
_ELSEWHERE = {
    "noise": "it is an option of its own, noise, as it reaches every BatchNorm of the network",
    "noise_in": "it is an option of its own, noise_in",
    "act": "the networks have their activations",
    "alone": "a network whose branches end in a convolution gets SE alone by itself",
}
_WORD = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_NUMBERS = {
    int: (re.compile(r"[+-]?[0-9]+"), "a whole number"),
    float: (re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"), "a number"),
}
_OVER = re.compile(r"(?P<method>[A-Za-z_]\w*)(?:\((?P<options>.*)\))?", re.ASCII)


def known(method: object, *, network: bool = True) -> dict[str, Any]:
    """Return the options of a method by name, with their types; a network's method has those of ``NETWORK`` too.

    Raises:
        UsageError: There is no such method.
    """
    if not isinstance(method, str) or method not in cn.methods():
        if isinstance(method, str) and {*method.split(",")} <= {*cn.methods()}:
            raise UsageError(Setting("norm", method), "names several; write blanks between them, where several can be")
        word = str(method).lower()
        if near := difflib.get_close_matches(ALIKE.get(word, word), cn.methods(), 1, 0.7):
            raise UsageError(Setting("norm", method), f"is not known; did you mean {near[0]}?")
        known = f"is not known; choose from {', '.join(cn.methods())}; for one of your own, "
        raise UsageError(Setting("norm", method), known, Setting("load", "FILE"), " that registers it")
    layer = layer_type(method)
    hints, starts = get_type_hints(layer.method_type), defaults(method)
    found: dict[str, Any] = {}
    for name in layer_options(layer):
        if name not in _ELSEWHERE:
            hint = hints.get(name, Any)  # a registered method's options are not annotated
            found[name] = "over" if name == "over" else type(starts[name]) if hint is Any else hint
    return {**found, **NETWORK} if network else found


def defaults(method: str) -> dict[str, Any]:
    """Return the values of options that are not given."""
    own = fields(layer_type(method).method_type)
    return {"over": None} | {
        f.name: f.default_factory() if f.default_factory is not MISSING else f.default for f in own
    }


def check_name(method: str, name: str, kinds: Mapping[str, Any]) -> None:
    """Raise UsageError unless a method has an option."""
    if name in kinds:
        return
    if name in _ELSEWHERE and name in layer_options(layer_type(method)):
        raise UsageError(Setting("norm", method), f"{name} cannot be given here; {_ELSEWHERE[name]}")
    raise UsageError(Setting("norm", method), f"{not_an_option(name, method, list(kinds))}")


def parse(norm: str, method: str, kinds: Mapping[str, Any], listed: str) -> dict[str, Any]:
    """Return the options in a list such as ``position=both,init=(0,1)``; errors name ``norm``, the whole text."""
    found: dict[str, Any] = {}
    for part in _split(norm, listed):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not _WORD.fullmatch(name):
            raise UsageError(Setting("norm", norm), f"{part.strip()!r} is not option=value")
        check_name(method, name, kinds)
        if name in found:
            raise UsageError(Setting("norm", norm), f"{name} is given twice")
        found[name] = _value(norm, name, value, kinds[name])
    return found


def plain(value: Any) -> Any:
    """Return tuples for lists, and a name for an ``over`` without options, so that what means the same is equal."""
    if isinstance(value, list | tuple):
        return tuple(plain(item) for item in value)
    if isinstance(value, Mapping):
        return value["method"] if set(value) == {"method"} else {name: plain(item) for name, item in value.items()}
    return value


def text(value: Any) -> str:
    """Return how a value is written."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, tuple):
        return f"({','.join(map(text, value))})"
    if isinstance(value, Mapping):
        listed = ",".join(f"{name}={text(item)}" for name, item in value.items() if name != "method")
        return f"{value['method']}({listed})"
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def _split(norm: str, listed: str) -> Iterator[str]:
    """Yield what stands between the commas outside parentheses."""
    depth = start = 0
    for i, character in enumerate(listed):
        depth += (character == "(") - (character == ")")
        if depth < 0:
            break
        if character == "," and depth == 0:
            yield listed[start:i]
            start = i + 1
    if depth:
        raise UsageError(Setting("norm", norm), "the parentheses do not match")
    if listed:
        yield listed[start:]


def _value(norm: str, name: str, given: str, kind: Any) -> Any:
    """Return the value of a type that a text stands for."""
    wrong = f"{name}={given} must be"
    if kind == "over":
        return _over(norm, given)
    if isinstance(kind, Mapping):
        if given not in kind:
            raise UsageError(Setting("norm", norm), f"{wrong} {' or '.join(kind)}")
        return kind[given]
    if get_origin(kind) in (Union, types.UnionType):
        if given.lower() == "none" and type(None) in get_args(kind):
            return None
        return _value(norm, name, given, next(choice for choice in get_args(kind) if choice is not type(None)))
    if get_origin(kind) is tuple:
        return _tuple(norm, name, given, get_args(kind))
    if kind is bool:
        if given.lower() not in ("true", "false"):
            raise UsageError(Setting("norm", norm), f"{wrong} true or false")
        return given.lower() == "true"
    if kind in _NUMBERS:
        pattern, what = _NUMBERS[kind]
        if not pattern.fullmatch(given):
            raise UsageError(Setting("norm", norm), f"{wrong} {what}")
        return kind(given)
    if kind is not str:
        reason = f"{name} is a {kind.__name__}, which cannot be written as text; build it in Python"
        raise UsageError(Setting("norm", norm), reason)
    if not _WORD.fullmatch(given):
        raise UsageError(Setting("norm", norm), f"{wrong} a word")
    return given


def _tuple(norm: str, name: str, given: str, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    parts = list(_split(norm, given[1:-1])) if given[:1] == "(" and given[-1:] == ")" else []
    if len(parts) != len(kinds):
        some = ",".join(["0"] * len(kinds))
        raise UsageError(Setting("norm", norm), f"{name}={given} must be {len(kinds)} numbers, such as {name}=({some})")
    return tuple(_value(norm, name, part.strip(), kind) for part, kind in zip(parts, kinds, strict=True))


def _over(norm: str, given: str) -> Any:
    """Return what the method stands over: None, a name, or a mapping with the options in parentheses."""
    if given.lower() == "none":
        return None
    match = _OVER.fullmatch(given)
    if match is None:
        raise UsageError(Setting("norm", norm), f"over={given} must be a method such as sn, or gn(groups=8)")
    method = match["method"]
    found = parse(norm, method, known(method, network=False), match["options"] or "")
    return {"method": method, **found} if found else method
