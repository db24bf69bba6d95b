"""Ratios to a baseline by group, on a logarithmic axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import geometric_mean
from typing import TYPE_CHECKING

from calibnorm.report.pictures.style import legend, new_figure, styles, tidy

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

TICKS = (0.1, 0.2, 0.3, 0.5, 1, 2, 3, 5, 10)


def ratios(
    panels: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]], y_label: str, title: str = ""
) -> Figure:
    """Draw ratios: small marks are single ones, large marks the geometric means of their groups.

    Args:
        panels: By label of the row, title of the column, group and name.
        y_label: What the ratios are, below the label of each row.
        title: Above everything.
    """
    columns = list(dict.fromkeys(column for row in panels.values() for column in row))
    everything = [groups for row in panels.values() for groups in row.values()]
    groups = list(dict.fromkeys(group for of in everything for group in of))
    names = list(dict.fromkeys(name for of in everything for by_name in of.values() for name in by_name))
    values = [value for of in everything for by_name in of.values() for found in by_name.values() for value in found]
    figure = new_figure(max(6.4, 1.0 + 2.9 * len(columns)), 1.3 + 2.5 * len(panels))
    grid = figure.subplots(len(panels), len(columns), sharex=True, sharey=True, squeeze=False)
    looks = styles(names)
    handles: dict[str, Artist] = {}
    for number, (label, row) in enumerate(panels.items()):
        for axes, column in zip(grid[number], columns, strict=True):
            axes.axhline(1, color="#000000", linewidth=1)
            for position, group in enumerate(groups):
                for name, found in row.get(column, {}).get(group, {}).items():
                    at, marks = position + 0.8 * ((names.index(name) + 0.5) / len(names) - 0.5), looks[name].of_marks()
                    axes.plot([at] * len(found), found, linestyle="none", **marks, markersize=3, alpha=0.35)
                    mean = [geometric_mean(found)]
                    (handles[name],) = axes.plot([at], mean, linestyle="none", **marks, markersize=7)
            axes.set_yscale("log")
            tidy(axes)
            if number == 0:
                axes.set_title(column, fontsize=10)
        grid[number][0].set_ylabel(f"{label}\n{y_label}", fontsize=9)
    for axes in grid[-1]:
        axes.set_xticks(range(len(groups)), groups, fontsize=8)
        axes.set_xlim(-0.5, len(groups) - 0.5)
    bottom, top = min(0.8 * min(values), 0.25), max(1.25 * max(values), 2)
    ticks = [tick for tick in TICKS if bottom <= tick <= top]
    for axes in grid.flat:
        axes.set_ylim(bottom, top)
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    figure.suptitle(title, fontsize=10)
    legend(figure, handles, names, "outside lower center")
    return figure
