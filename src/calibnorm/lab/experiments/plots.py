"""Learning curves, and the final accuracies with every seed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from calibnorm.lab.experiments import statistics
from calibnorm.lab.experiments.grid import Grid
from calibnorm.lab.experiments.outcomes import curve
from calibnorm.lab.experiments.summary import Line
from calibnorm.lab.pictures import save, tidy

# Okabe and Ito's colours, which colour-blind readers can tell apart, and a few more; marks and dashes where there is no
# colour.
KNOWN = {
    "bn": ("#000000", "s", "--"),
    "se": ("#009E73", "o", "-"),
    "iebn": ("#D55E00", "^", "-"),
    "rbn": ("#0072B2", "v", ":"),
}
COLORS = ("#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#7F7F7F", "#B8A900", "#9467BD")
MARKERS = "DPX*<>hp"
DASHES = ("-.", "-", ":", "-")
ACROSS = 4
"""Panels side by side."""

Style = dict[str, str]


def styles(columns: Sequence[str]) -> dict[str, Style]:
    """Return a style for each column: a method's own in every picture; without BN, the first column has BN's."""
    known = KNOWN if "bn" in columns else {columns[0]: KNOWN["bn"], **KNOWN}
    free = zip(itertools.cycle(COLORS), itertools.cycle(MARKERS), itertools.cycle(DASHES))
    looks = {column: known.get(column) or next(free) for column in columns}
    return {column: {"color": c, "marker": m, "linestyle": d} for column, (c, m, d) in looks.items()}


def shape(panels: int) -> tuple[int, int]:
    """Return how many panels stand side by side, and in how many rows, the rows as equal as they can be.

    >>> shape(3), shape(4), shape(6), shape(9)
    ((3, 1), (4, 1), (3, 2), (3, 3))
    """
    deep = math.ceil(panels / ACROSS)
    return math.ceil(panels / deep), deep


def draw_curves(grid: Grid, path: Path) -> bool:
    """Draw test error and training loss over epochs, a pair of panels a row of the grid.

    Lines are means over the seeds that have reached an epoch, bands reach from the least to the greatest.

    Returns:
        Whether there was anything to draw.
    """
    curves = {(c.row, c.column): [curve(grid.run(c, seed)) for seed in grid.seeds] for c in grid.cells}
    if not any(epochs for of in curves.values() for epochs in of):
        return False
    rows, style = grid.rows, styles(grid.columns())
    across, deep = shape(len(rows))
    figure = Figure(figsize=(1.2 + 3.5 * across, 0.9 + 4.4 * deep), layout="constrained")
    panels = figure.subplots(2 * deep, across, sharey="row", squeeze=False)
    for number, row in enumerate(rows):
        column_of = number % across
        above, below = panels[2 * (number // across)][column_of], panels[2 * (number // across) + 1][column_of]
        for column in grid.columns(row):
            of = curves[row, column]
            draw_band(above, [[(e.epoch, 100 - e.test_accuracy) for e in run] for run in of], style[column], column)
            draw_band(below, [[(e.epoch, e.train_loss) for e in run] for run in of], style[column], column)
        above.set_title(row, fontsize="medium")
        below.set_xlabel("epoch")
        if column_of == 0:
            above.set_ylabel("test error (%)")
            below.set_ylabel("training loss")
    for line_of_panels in panels:
        finish(line_of_panels)
    figure.align_ylabels()
    handles = {line.get_label(): line for axes in panels.flat for line in axes.get_lines()}
    shown = [column for column in style if column in handles]
    figure.legend(
        [handles[column] for column in shown],
        shown,
        loc="outside upper center",
        ncols=min(6, len(shown)),
        frameon=False,
    )
    save(figure, path)
    return True


def draw_band(axes: Axes, runs: Sequence[Sequence[tuple[int, float]]], style: Style, label: str) -> None:
    """Draw the mean and the range of several runs' values over their epochs; what is not finite is left out."""
    at: dict[int, list[float]] = {}
    for run in runs:
        for epoch, value in run:
            if math.isfinite(value):
                at.setdefault(epoch, []).append(value)
    if not at:
        return
    epochs = sorted(at)
    every = max(1, len(epochs) // 12)
    middle = [statistics.mean(at[epoch]) for epoch in epochs]
    axes.plot(epochs, middle, **style, label=label, markersize=4.5, markevery=every, linewidth=1.6)  # type: ignore[arg-type]
    low, high = [min(at[epoch]) for epoch in epochs], [max(at[epoch]) for epoch in epochs]
    axes.fill_between(epochs, low, high, color=style["color"], alpha=0.15, linewidth=0)


def finish(panels: Sequence[Axes]) -> None:
    """Choose the common scale of panels: logarithmic where the values spread over more than a factor of three."""
    values = [float(y) for axes in panels for line in axes.get_lines() for y in np.asarray(line.get_ydata())]
    logarithmic = bool(values) and min(values) > 0 and max(values) > 3 * min(values)
    for axes in panels:
        if not axes.get_lines():
            axes.set_axis_off()
            continue
        if logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        first, last = axes.get_xlim()
        if last - first < 1:  # one epoch: no ticks between whole ones
            axes.set_xlim(round(first) - 0.5, round(last) + 0.5)
        tidy(axes)


def draw_finals(grid: Grid, lines: Sequence[Line], path: Path) -> None:
    """Draw the accuracy after the last epoch of every run, a panel a row.

    Beside the runs their mean, with its 95 % interval from three seeds on. Thin lines connect the runs of a seed. Runs
    that did not finish are counted at the bottom.
    """
    rows, style = grid.rows, styles(grid.columns())
    widest = max(len(grid.columns(row)) for row in rows)
    across, deep = shape(len(rows))
    size = (1.0 + across * max(2.6, 0.55 * widest + 0.8), 0.4 + 3.6 * deep)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(deep, across, squeeze=False)
    for axes, row in zip(panels.flat, rows, strict=False):
        draw_panel(axes, [line for line in lines if line.cell.row == row], grid.seeds, style)
        axes.set_title(row, fontsize="medium")
    for axes in panels.flat[len(rows) :]:
        axes.set_axis_off()
    for axes in panels[:, 0]:
        axes.set_ylabel("test accuracy (%)")
    save(figure, path)


def draw_panel(axes: Axes, lines: Sequence[Line], seeds: Sequence[int], style: dict[str, Style]) -> None:
    """Draw one row of the grid."""
    for seed in seeds:
        of = [(x, line.accuracies[seed]) for x, line in enumerate(lines) if seed in line.accuracies]
        axes.plot([x for x, _ in of], [y for _, y in of], color="#BBBBBB", linewidth=0.7, zorder=1)
    for x, line in enumerate(lines):
        look, values = style[line.cell.column], list(line.accuracies.values())
        axes.scatter([x] * len(values), values, color=look["color"], marker=look["marker"], s=26, alpha=0.75, zorder=3)
        if values:
            beside = x + 0.24
            if line.interval is not None and len(values) > 2:  # that of two is 12.7 times as wide as they are apart
                axes.plot([beside] * 2, [line.interval.low, line.interval.high], color=look["color"], linewidth=1.2)
            axes.plot([beside], [line.mean], color=look["color"], marker="_", markersize=9, markeredgewidth=2)
        if line.failed:
            axes.annotate(
                f"✕ {line.failed} failed",
                (x, 0.02),
                xycoords=("data", "axes fraction"),
                ha="center",
                fontsize="x-small",
            )
    finished = [value for line in lines for value in line.accuracies.values()]
    if finished:
        margin = max(0.08 * (max(finished) - min(finished)), 0.3)
        axes.set_ylim(max(0.0, min(finished) - 1.6 * margin), min(100.0 + margin / 2, max(finished) + margin))
    axes.set_xticks(range(len(lines)), [line.cell.column for line in lines], rotation=30, ha="right", fontsize="small")
    axes.set_xlim(-0.5, len(lines) - 0.4)
    tidy(axes)
