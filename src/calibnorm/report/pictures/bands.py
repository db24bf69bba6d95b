"""Lines with bands around them: curves over epochs, values over layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from calibnorm.report.pictures.style import Style, legend, new_figure, shape, styles, tidy

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Point(NamedTuple):
    """One place of a band."""

    x: float
    middle: float
    low: float
    high: float


Run = Sequence[tuple[float, float]]
"""The values of one run, such as (epoch, loss)."""


def curves(columns: Mapping[str, Mapping[str, Mapping[str, Sequence[Run]]]], x_label: str = "epoch") -> Figure:
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
    columns: Mapping[str, Mapping[str, Mapping[str, Sequence[Point]]]],
    x_label: str,
    starts: Mapping[str, float] | None = None,
    logarithmic: bool = True,
) -> Figure:
    """Draw a column of panels for every title, a panel for every label of a vertical axis.

    Panels with one label share their scale.

    Args:
        columns: Bands by title of the column, label of the vertical axis and name.
        x_label: Of the horizontal axis.
        starts: By label of a vertical axis, the value before training: a dotted line.
        logarithmic: Whether a vertical axis may be, where its values spread over more than a factor of three.
    """
    stack = max(len(panels) for panels in columns.values())
    across, deep = shape(len(columns))
    figure = new_figure(1.2 + 3.5 * across, 0.9 + 2.2 * stack * deep)
    grid = figure.subplots(stack * deep, across, squeeze=False)
    names = dict.fromkeys(name for panels in columns.values() for of in panels.values() for name in of)
    looks = styles(names)
    handles: dict[str, Artist] = {}
    by_label: dict[str, list[Axes]] = {}
    for number, (title, panels) in enumerate(columns.items()):
        row, column = stack * (number // across), number % across
        for below, (label, of) in enumerate(panels.items()):
            axes = grid[row + below][column]
            beside = by_label.setdefault(label, [])
            if beside:
                axes.sharey(beside[0])
            beside.append(axes)
            if starts and label in starts:
                line = axes.axhline(starts[label], color="#666666", linestyle=":", linewidth=1.4)
                handles["initial value"] = line
            handles |= {name: draw_band(axes, band, looks[name]) for name, band in of.items() if band}
            if column == 0 or label != list(list(columns.values())[number - 1])[below]:
                axes.set_ylabel(label)
        grid[row][column].set_title(title, fontsize="medium")
        grid[row + len(panels) - 1][column].set_xlabel(x_label)
    for together in by_label.values():
        finish(together, logarithmic)
    drawn = [axes for together in by_label.values() for axes in together]
    for axes in grid.flat:
        if axes not in drawn or not axes.get_lines():
            axes.set_axis_off()
    figure.align_ylabels()
    legend(figure, handles, names)
    return figure


def draw_band(axes: Axes, band: Sequence[Point], style: Style) -> Artist:
    """Draw a line and the band around it; return the line."""
    x, middle, low, high = zip(*band, strict=True)
    every = max(1, len(band) // 12)
    (line,) = axes.plot(x, middle, **style.of_line(), markersize=4.5, markevery=every, linewidth=1.6)
    axes.fill_between(x, low, high, color=style.color, alpha=0.15, linewidth=0)
    return line


def finish(panels: Sequence[Axes], logarithmic: bool) -> None:
    """Choose the common scale of panels."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    values = [float(y) for axes in panels for line in axes.get_lines() for y in list(line.get_ydata())]  # type: ignore[arg-type]
    spread = bool(values) and min(values) > 0 and max(values) > 3 * min(values)
    for axes in panels:
        if logarithmic and spread:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        first, last = axes.get_xlim()
        if last - first < 1:  # one epoch: no ticks between whole ones
            axes.set_xlim(round(first) - 0.5, round(last) + 0.5)
        tidy(axes)
