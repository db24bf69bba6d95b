"""Lines with bands around them: curves over epochs, values over layers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from calibnorm.report.pictures import axes
from calibnorm.report.pictures.drawing import GREY, Axis, Band, Dot, Dots, Drawing, Line, Mark, Panel
from calibnorm.report.pictures.style import Style, styles

MARKS = 12
"""About so many places of a line have a mark."""
START = Style(GREY, "", ":")


class Point(NamedTuple):
    """One place of a band."""

    x: float
    middle: float
    low: float
    high: float


Run = Sequence[tuple[float, float]]
"""The values of one run, such as (epoch, loss)."""
Panels = Mapping[str, Mapping[str, Sequence[Point]]]
"""Bands by label of the vertical axis and name."""


def curves(columns: Mapping[str, Mapping[str, Mapping[str, Sequence[Run]]]], x_label: str = "epoch") -> Drawing:
    """Draw runs over epochs: lines are means over runs, bands reach from the least to the greatest.

    Args:
        columns: Runs by title of the column, label of the vertical axis and name.
        x_label: Of the horizontal axis.
    """
    return bands(
        {
            title: {label: {name: over(runs) for name, runs in of.items()} for label, of in panels.items()}
            for title, panels in columns.items()
        },
        x_label,
    )


def over(runs: Sequence[Run]) -> list[Point]:
    """Return mean and range of the runs that have reached a place; what is not finite is left out."""
    at: dict[float, list[float]] = {}
    for run in runs:
        for x, value in run:
            if math.isfinite(value):
                at.setdefault(x, []).append(value)
    return [Point(x, fmean(values), min(values), max(values)) for x, values in sorted(at.items())]


def bands(
    columns: Mapping[str, Panels],
    x_label: str,
    starts: Mapping[tuple[str, str], float] | None = None,
    logarithmic: bool = True,
) -> Drawing:
    """Draw a column of panels for every title, a panel for every label of a vertical axis.

    Panels with one label share their scale. A title that says no more than the label of its one panel is left out.

    Args:
        columns: Bands by title of the column, label of the vertical axis and name.
        x_label: Of the horizontal axis.
        starts: By title and label of the vertical axis, the value before training: a dotted line.
        logarithmic: Whether a vertical axis may be, where its values spread over more than a factor of three.
    """
    starts = starts or {}
    names = dict.fromkeys(
        name for panels in columns.values() for of in panels.values() for name, band in of.items() if band
    )
    looks = styles(names)
    scales = {
        label: scale(
            [point for panels in columns.values() for band in panels.get(label, {}).values() for point in band],
            [value for (_, of), value in starts.items() if of == label],
            label,
            logarithmic,
        )
        for label in dict.fromkeys(label for panels in columns.values() for label in panels)
    }
    drawn = [
        (
            "" if list(panels) == [title] else title,
            [
                panel(of, scales[label], looks, x_label, starts.get((title, label))) if any(of.values()) else None
                for label, of in panels.items()
            ],
        )
        for title, panels in columns.items()
    ]
    return Drawing(drawn, (3.5, 2.2), looks | ({"initial value": START} if starts else {}))


def scale(points: Sequence[Point], starts: Sequence[float], label: str, logarithmic: bool) -> Axis:
    """Return the vertical axis that panels with one label share."""
    middles = [*(point.middle for point in points), *starts]
    if logarithmic and middles and min(middles) > 0 and max(middles) > 3 * min(middles):
        least = min(point.low for point in points)
        return axes.logarithmic(least if least > 0 else min(middles), max(point.high for point in points), label)
    ends = [*starts, *(value for point in points for value in (point.low, point.high))] or [0.0, 1.0]
    return axes.linear(min(ends), max(ends), label)


def panel(
    of: Mapping[str, Sequence[Point]], y: Axis, looks: Mapping[str, Style], x_label: str, start: float | None
) -> Panel:
    """Return one panel: the bands behind, then the lines, then the marks."""
    places = [point.x for band in of.values() for point in band]
    x = axes.whole(min(places), max(places), x_label)
    marks: list[Mark] = [] if start is None else [Line([x.low, x.high], [start, start], START, 1.4)]
    known = {name: band for name, band in of.items() if band}
    for name, band in known.items():
        low, high = (
            [min(max(value, y.low), y.high) for value in ends]
            for ends in ([p.low for p in band], [p.high for p in band])
        )
        marks.append(Band([point.x for point in band], low, high, looks[name].color))
    for name, band in known.items():
        marks.append(Line([point.x for point in band], [point.middle for point in band], looks[name]))
    for name, band in known.items():
        marks.append(Dots(list(said(name, band, x_label)), looks[name]))
    return Panel(x, y, marks)


def said(name: str, band: Sequence[Point], x_label: str) -> Iterator[Dot]:
    """Yield the places of a band that have a mark, the last one always, with what they say."""
    every = max(1, len(band) // MARKS)
    place = x_label.partition(",")[0]
    for x, middle, low, high in band[(len(band) - 1) % every :: every]:
        extent = f" ({low:.4g} to {high:.4g})" if low < high else ""
        yield Dot(x, middle, f"{name}, {place} {x:g}: {middle:.4g}{extent}")
