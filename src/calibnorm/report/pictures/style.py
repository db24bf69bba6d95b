"""How a norm looks in every picture, and how panels are laid out."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

Fill = Literal["full", "none", "bottom", "top", "left", "right"]


@dataclass(frozen=True)
class Style:
    """How the line and the marks of a name look; without a mark or without a line, that is empty."""

    color: str
    marker: str
    linestyle: str
    fillstyle: Fill = "full"


# Colours of Okabe and Ito, then of Tol and a few more, which colour-blind readers can tell apart; marks and dashes
# serve where colour is missing.
METHODS = {
    "bn": Style("#000000", "s", "--"),
    "se": Style("#009E73", "o", "-"),
    "iebn": Style("#D55E00", "^", "-"),
    "rbn": Style("#0072B2", "v", ":"),
    "in": Style("#56B4E9", "D", "-."),
    "gn": Style("#E69F00", "P", "-"),
    "ln": Style("#CC79A7", "X", ":"),
    "sn": Style("#8C564B", "*", "-"),
    "bcn": Style("#7F7F7F", "<", "-."),
    "ilm": Style("#B8A900", ">", "-"),
    "frn": Style("#9467BD", "h", ":"),
    "an": Style("#882255", "p", "-"),
    "ghost": Style("#44AA99", "d", "-."),
    "brn": Style("#332288", "H", ":"),
}
SAME = {"batchnorm": "bn", "batchnormact": "bn", "ghostbn": "ghost"}
"""Names of layers that are not those of their methods."""
OTHERS = (
    Style("#117733", "o", "-"),
    Style("#AA4499", "s", "--"),
    Style("#999933", "^", ":"),
    Style("#661100", "D", "-."),
)
"""For registered methods, and for whatever else a picture has: conditions, say."""
VARIANT_MARKS = "oD^sPvX*"
VARIANT_DASHES = ("-.", "-", ":", "--")
PALER = (0.5, 0.3, 0.65, 0.4)
"""How much white is in the colours of a method's variants."""
FILLS: dict[tuple[str, bool], Fill] = {
    ("", True): "full", ("", False): "none",
    ("compiled", True): "bottom", ("compiled", False): "top",
    ("fused", True): "left", ("fused", False): "right",
}  # fmt: skip
"""By how a layer is run and whether it is one of this library's or a method by name."""


def styles(names: Iterable[str]) -> dict[str, Style]:
    """Return how each name of a picture looks: a method has its own colour, mark and dash in every picture.

    Args:
        names: Norms ("bn", "iebn:init=0,0") or layers ("cn.IEBN2d", "compiled:authors.RBN"), or any other labels.
            Variants of a method are paler, with another mark and dash, by their order.
    """
    found: dict[str, Style] = {}
    others, variants = itertools.cycle(OTHERS), dict.fromkeys(METHODS, 0)
    for name in dict.fromkeys(names):
        run, of, method, options = parsed(name)
        style = METHODS.get(method) or next(others)
        if options and method in METHODS:
            style, variants[method] = variant(style, variants[method]), variants[method] + 1
        found[name] = replace(style, fillstyle=FILLS[run, of in ("", "cn")])
    return found


def parsed(name: str) -> tuple[str, str, str, str]:
    """Return how a layer is run, whose it is, its method and its options.

    >>> parsed("compiled:cn.IEBN2d"), parsed("bn:gamma_init=0.3"), parsed("nn.BatchNorm2d")
    (('compiled', 'cn', 'iebn', ''), ('', '', 'bn', 'gamma_init=0.3'), ('', 'nn', 'bn', ''))
    """
    matched = re.fullmatch(r"(?:(compiled|fused):)?(?:(\w+)\.)?(\w+?)(?:[123]d)?(?::(.*))?", name)
    run, of, method, options = matched.groups("") if matched else ("", "", name, "")
    return run, of, SAME.get(method.lower(), method.lower()), options


def variant(style: Style, number: int) -> Style:
    """Return the style of a method's variant, counted from 0."""
    white = PALER[number % len(PALER)]
    levels = (int(style.color[i : i + 2], 16) for i in (1, 3, 5))
    color = "#" + "".join(f"{round(255 * white + (1 - white) * level):02X}" for level in levels)
    marks = [mark for mark in VARIANT_MARKS if mark != style.marker]
    return Style(color, marks[number % len(marks)], VARIANT_DASHES[number % len(VARIANT_DASHES)])


def shape(panels: int, across: int = 4) -> tuple[int, int]:
    """Return how many panels stand side by side, at most ``across``, and in how many rows, as equal as they can be.

    >>> shape(3), shape(4), shape(6), shape(9)
    ((3, 1), (4, 1), (3, 2), (3, 3))
    """
    deep = math.ceil(panels / across)
    return math.ceil(panels / deep), deep
