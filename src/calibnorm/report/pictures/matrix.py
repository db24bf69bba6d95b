"""A table of shares as squares in gray: what a network takes the images of each class for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from calibnorm.report.pictures import axes
from calibnorm.report.pictures.drawing import Drawing, Panel, Shades

CELL, AXES, LEAST = 0.3, 0.6, 2.4
"""Inches of a square's side, of the axes, and of the smallest panel."""


def matrix(names: Sequence[str], rows: Sequence[Sequence[float]], x_label: str, y_label: str) -> Drawing:
    """Draw a square for every row and column: white is 0, black is 1.

    Args:
        names: Of the rows, which the columns share: rows have numbers before them, columns have these alone.
        rows: From 0 to 1.
        x_label: What the columns are.
        y_label: What the rows are.
    """
    numbers = [str(number) for number in range(1, len(names) + 1)]
    named = [f"{name} {number}" for name, number in zip(names, numbers, strict=True)]
    x, y = axes.names(numbers), axes.names(named, down=True)
    end = len(names) - 0.5
    says = f"{y_label}, by {x_label}: white is none, black all"
    shown = Shades(-0.5, end, -0.5, end, [[1 - value for value in row] for row in rows], says)
    side = max(LEAST, CELL * len(names))
    panel = Panel(replace(x, label=x_label), replace(y, label=y_label), [shown])
    return Drawing([("", [panel])], (side + AXES + 0.07 * max(map(len, named)), side + AXES), {})
