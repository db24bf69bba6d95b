"""Normalizations as text, such as ``iebn:position=both,init=(0,1)``: a method and its options.

Names and types are those of the method's own signature, so that a method of ``cn.register_method`` can be written too.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Union, get_args, get_origin, get_type_hints

import calibnorm as cn
from calibnorm.lab.errors import UsageError
from calibnorm.methods import not_an_option
from calibnorm.nn import layer_type
from calibnorm.nn.options import layer_options

# What a layer takes and a network's norm does not, with what to do instead.
_ELSEWHERE = {
    "noise": "it is an option of its own, noise, as it reaches every BatchNorm of the network",
    "noise_in": "it is an option of its own, noise_in",
    "act": "the networks have their activations",
    "alone": "a network whose branches end in a convolution gets SE alone by itself",
}
_WORD = re.compile(r"[A-Za-z_]\w*")
_OVER = re.compile(r"(?P<method>[A-Za-z_]\w*)(?:\((?P<options>.*)\))?")


@dataclass(frozen=True)
class Norm:
    """A method with its options; ``str`` gives the canonical text, without the options that are the defaults.

    Args:
        method: One of ``cn.methods()``.
        options: Options of the method by name, such as ``{"init": (0.0, 1.0)}``.

    Raises:
        UsageError: The method, an option or a value is not known.

    >>> str(Norm("bn", {"gamma_init": 0.269})), str(Norm("rbn", {"scaling": True}))
    ('bn:gamma_init=0.269', 'rbn')
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the options, and put them into the one order and form that equal norms share."""
        given = dict(self.options)
        known = _known(self.method)
        for name in given:
            _check_name(self.method, name, known)
        try:
            cn.norm_layer(self.method, **given)
        except (TypeError, ValueError) as error:
            raise UsageError(f"norm {self.method}: {error}") from None
        defaults = _defaults(self.method)
        plain = {name: _plain(given[name]) for name in known if name in given}
        object.__setattr__(self, "options", {name: v for name, v in plain.items() if v != _plain(defaults[name])})

    def __str__(self) -> str:
        """Return the text that :func:`parse_norm` reads."""
        listed = ",".join(f"{name}={_text(value)}" for name, value in self.options.items())
        return f"{self.method}:{listed}" if listed else self.method

    def __hash__(self) -> int:
        """Equal norms have equal texts."""
        return hash(str(self))


def parse_norm(norm: str | Norm) -> Norm:
    """Return the normalization that a text names: ``method`` or ``method:option=value,...``.

    Values are numbers, ``true`` and ``false``, words, ``none``, numbers in parentheses, and for ``over`` a method with
    its own options in parentheses, ``rbn:over=gn(groups=8)``.

    Raises:
        UsageError: The text is no such thing, or the method, an option or a value is not known.

    >>> parse_norm("iebn:init=(0,1)")
    Norm(method='iebn', options={'init': (0.0, 1.0)})
    """
    if isinstance(norm, Norm):
        return norm
    if not isinstance(norm, str):
        raise UsageError(f"norm {norm!r}: must be a text such as 'iebn' or 'bn:gamma_init=0.269'")
    method, colon, listed = norm.strip().partition(":")
    method = method.strip()
    known = _known(method)
    if colon and not listed.strip():
        raise UsageError(f"norm {norm}: nothing follows the colon; write {method}, or {method}:option=value")
    return Norm(method, _options(norm, method, known, listed))


def _known(method: object) -> dict[str, Any]:
    """Return the options of a method in a network, by name with their types."""
    if not isinstance(method, str) or method not in cn.methods():
        raise UsageError(f"norm {method}: is not known; choose from {', '.join(cn.methods())}")
    layer = layer_type(method)
    hints = get_type_hints(layer.method_type)
    defaults = _defaults(method)
    names = [name for name in layer_options(layer) if name not in _ELSEWHERE]
    return {name: _kind(name, hints, defaults) for name in names}


def _kind(name: str, hints: Mapping[str, Any], defaults: Mapping[str, Any]) -> Any:
    """Return the type of an option: "over", the annotated one, or the default's where there is no annotation."""
    if name == "over":
        return "over"
    hint = hints.get(name, Any)
    return type(defaults[name]) if hint is Any else hint


def _defaults(method: str) -> dict[str, Any]:
    own = fields(layer_type(method).method_type)
    found = {f.name: f.default_factory() if f.default_factory is not MISSING else f.default for f in own}
    return {"over": None, **found}


def _check_name(method: str, name: str, known: Mapping[str, Any]) -> None:
    if name in known:
        return
    if name in _ELSEWHERE and name in layer_options(layer_type(method)):
        raise UsageError(f"norm {method}: {name} cannot be given here; {_ELSEWHERE[name]}")
    raise UsageError(f"norm {method}: {not_an_option(name, method, list(known))}")


def _options(norm: str, method: str, known: Mapping[str, Any], listed: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for part in _split(norm, listed):
        name, equals, text = (piece.strip() for piece in part.partition("="))
        if not equals or not _WORD.fullmatch(name):
            raise UsageError(f"norm {norm}: {part.strip()!r} is not option=value")
        _check_name(method, name, known)
        if name in options:
            raise UsageError(f"norm {norm}: {name} is given twice")
        options[name] = _value(norm, name, text, known[name])
    return options


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
        raise UsageError(f"norm {norm}: the parentheses do not match")
    if listed.strip():
        yield listed[start:]


def _value(norm: str, name: str, text: str, kind: Any) -> Any:
    """Return the value of a type that a text stands for."""
    if kind == "over":
        return _over(norm, text)
    if get_origin(kind) in (Union, types.UnionType):
        choices = [choice for choice in get_args(kind) if choice is not type(None)]
        if text.lower() == "none" and type(None) in get_args(kind):
            return None
        return _value(norm, name, text, choices[0])
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        parts = list(_split(norm, text[1:-1])) if text[:1] == "(" and text[-1:] == ")" else []
        if len(parts) != len(inner):
            some = ",".join(["0"] * len(inner))
            raise UsageError(f"norm {norm}: {name}={text} must be {len(inner)} numbers, such as {name}=({some})")
        return tuple(_value(norm, name, part.strip(), each) for part, each in zip(parts, inner, strict=True))
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise UsageError(f"norm {norm}: {name}={text} must be true or false")
        return text.lower() == "true"
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            what = "an integer" if kind is int else "a number"
            raise UsageError(f"norm {norm}: {name}={text} must be {what}") from None
    if kind is str and _WORD.fullmatch(text):
        return text
    raise UsageError(f"norm {norm}: {name}={text} must be a word")


def _over(norm: str, text: str) -> Any:
    """Return what the method stands over: None, a name, or a mapping with the options in parentheses."""
    if text.lower() == "none":
        return None
    match = _OVER.fullmatch(text)
    if match is None:
        raise UsageError(f"norm {norm}: over={text} must be a method such as sn, or gn(groups=8)")
    method = match["method"]
    options = _options(norm, method, _known(method), match["options"] or "")
    return {"method": method, **options} if options else method


def _plain(value: Any) -> Any:
    """Return tuples for lists and a name for an ``over`` without options, so that equal values are equal."""
    if isinstance(value, list | tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, Mapping):
        return value["method"] if set(value) == {"method"} else dict(value)
    return value


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, tuple):
        return f"({','.join(map(_text, value))})"
    if isinstance(value, Mapping):
        listed = ",".join(f"{name}={_text(item)}" for name, item in value.items() if name != "method")
        return f"{value['method']}({listed})"
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
