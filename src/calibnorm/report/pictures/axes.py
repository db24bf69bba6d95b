"""Axes for the values that a panel has: where they begin and end, and which ticks they have."""

from __future__ import annotations

import math
from collections.abc import Sequence

from calibnorm.report.pictures.drawing import Axis

TICKS = 5
"""About so many ticks stand on an axis of numbers."""


def linear(low: float, high: float, label: str = "", margin: float = 0.05) -> Axis:
    """Return an axis of numbers with round ticks.

    Args:
        low: The least value.
        high: The greatest value.
        label: What it measures.
        margin: How far it goes on beyond both, as a share of what lies between.

    >>> [text for _, text in linear(81.2, 86.9).ticks]
    ['82', '84', '86']
    """
    wide = margin * (high - low) or (0.05 * margin and (0.05 * abs(high) or 1.0))
    low, high = low - wide, high + wide
    step = 10.0 ** math.floor(math.log10((high - low) / TICKS))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= TICKS)
    return Axis(low, high, multiples(low, high, step), label)


def multiples(low: float, high: float, step: float) -> list[tuple[float, str]]:
    """Return the multiples of a step between two values, as ticks."""
    numbers = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return [(number * step, f"{number * step:.6g}") for number in numbers]


def whole(low: float, high: float, label: str = "") -> Axis:
    """Return an axis whose ticks are whole numbers, such as epochs; one alone has room on both sides.

    >>> whole(1, 1)
    Axis(low=0.5, high=1.5, ticks=[(1, '1')], label='', logarithmic=False, names=False, down=False)
    """
    if high - low < 1:
        first = round(low)
        return Axis(first - 0.5, round(high) + 0.5, [(first, f"{first}")], label)
    axis = linear(low, high, label, 0.04)
    step = max(1.0, axis.ticks[1][0] - axis.ticks[0][0] if len(axis.ticks) > 1 else 1.0)
    return Axis(axis.low, axis.high, [t for t in multiples(axis.low, axis.high, step) if low <= t[0] <= high], label)


def logarithmic(low: float, high: float, label: str = "", margin: float = 0.05) -> Axis:
    """Return a logarithmic axis of positive numbers.

    >>> [text for _, text in logarithmic(0.9, 12).ticks]
    ['1', '2', '5', '10']
    """
    wide = (high / low) ** margin
    low, high = low / wide, high * wide
    tens = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(tens) <= 4 else (1,)
    ticks = [(f * 10.0**ten, f"{f * 10.0**ten:g}") for ten in tens for f in factors]
    return Axis(low, high, [tick for tick in ticks if low <= tick[0] <= high], label, logarithmic=True)


def names(texts: Sequence[str], down: bool = False) -> Axis:
    """Return an axis with a place for every name: 0, 1, 2 and so on."""
    return Axis(-0.5, len(texts) - 0.5, list(enumerate(texts)), names=True, down=down)
