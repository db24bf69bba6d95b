"""Small pictures in gray side by side: the features of a few channels, step by step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from calibnorm.report import files
from calibnorm.report.pictures import axes
from calibnorm.report.pictures.drawing import Drawing, Panel, Shades

Rows = Sequence[Sequence[float]]
"""The numbers of a small picture, a row after the other."""
WIDE, ROW, AXES, HALF = 4.2, 0.5, 0.75, 0.46
"""Inches of a panel's width, of a row and of the axes; half the width of a picture, as a share of its place."""


def shades(of: Mapping[str, Mapping[str, Rows]], x_label: str, y_label: str, alike: Sequence[Sequence[str]]) -> Drawing:
    """Draw a small picture for every row and column of a table; the least value is black, the greatest white.

    Args:
        of: Numbers by name of the row and of the column; all rows have the same columns.
        x_label: What the columns are.
        y_label: What the rows are.
        alike: Groups of columns whose pictures share black and white within a row; the others have their own.
    """
    columns = [*next(iter(of.values()))]
    marks = [mark for y, (name, row) in enumerate(of.items()) for mark in pictures(y, name, row, alike)]
    x, y = axes.names(columns), axes.names([*of], down=True)
    panel = Panel(replace(x, label=x_label), replace(y, label=y_label), marks)
    return Drawing([("", [panel])], (WIDE, AXES + ROW * len(of)), {})


def pictures(y: int, name: str, row: Mapping[str, Rows], alike: Sequence[Sequence[str]]) -> Iterator[Shades]:
    """Yield the pictures of a row."""
    for x, (column, numbers) in enumerate(row.items()):
        group = next((group for group in alike if column in group), [column])
        values = [value for each in group if each in row for line in row[each] for value in line]
        low, high = min(values), max(values)
        gray = [[(value - low) / ((high - low) or 1.0) for value in line] for line in numbers]
        says = f"{' '.join(name.split())}, {column}: black is {low:.3g}, white {high:.3g}"
        yield Shades(x - HALF, x + HALF, y - HALF, y + HALF, gray, says)


def png(rows: Rows) -> bytes:
    """Return a gray picture of 8 bits as a PNG file.

    >>> png([[0, 1]])[1:4]
    b'PNG'
    """
    return files.png((255 * torch.tensor(rows, dtype=torch.float64)).round().to(torch.uint8)[None])
