"""Every run's final value, and differences beside a paper's."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from calibnorm.report.pictures.style import Style, legend, new_figure, shape, styles, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Interval = tuple[float, float]
LEAST = 3
"""Intervals are drawn from so many runs on: that of two is 12.7 times as wide as they are apart."""
LINE = 15
"""Labels are broken into lines of about so many characters."""


@dataclass(frozen=True)
class Seeds:
    """What the runs of one name gave, or their differences from a baseline.

    Args:
        values: By seed, of the runs that finished.
        interval: Of their mean.
        failed: How many runs did not finish.
        printed: What a paper has for their mean.
    """

    values: Mapping[int, float]
    interval: Interval | None = None
    failed: int = 0
    printed: float | None = None

    @property
    def known_interval(self) -> Interval | None:
        """The interval where there are enough runs to draw it."""
        return self.interval if len(self.values) >= LEAST else None


def finals(panels: Mapping[str, Mapping[str, Seeds]], y_label: str, bounds: Interval = (-math.inf, math.inf)) -> Figure:
    """Draw the final value of every run; beside the runs their mean with its interval.

    Thin lines connect the runs of a seed. Runs that failed are counted at the bottom. An interval that is far wider
    than the values are apart ends at the panel's border, with an arrow.

    Args:
        panels: By title and name.
        y_label: Of the vertical axis.
        bounds: What values can be at all.
    """
    widest = max(len(of) for of in panels.values())
    across, deep = shape(len(panels))
    figure = new_figure(1.0 + across * max(2.6, 0.55 * widest + 0.8), 0.4 + 3.6 * deep)
    grid = figure.subplots(deep, across, squeeze=False)
    looks = styles(name for of in panels.values() for name in of)
    for axes, (title, of) in zip(grid.flat, panels.items(), strict=False):
        draw_finals(axes, of, looks, bounds)
        axes.set_title(title, fontsize="medium")
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel(y_label)
    return figure


def draw_finals(axes: Axes, of: Mapping[str, Seeds], looks: Mapping[str, Style], bounds: Interval) -> None:
    """Draw one panel."""
    for seed in dict.fromkeys(seed for final in of.values() for seed in final.values):
        line = [(x, final.values[seed]) for x, final in enumerate(of.values()) if seed in final.values]
        axes.plot(*zip(*line, strict=True), color="#BBBBBB", linewidth=0.7, zorder=1)
    known = [final for final in of.values() if final.values]
    low, high = reach([v for f in known for v in f.values.values()], [f.known_interval for f in known], bounds)
    axes.set_ylim(low, high)
    for x, (name, final) in enumerate(of.items()):
        look, values = looks[name], list(final.values.values())
        axes.scatter([x] * len(values), values, color=look.color, marker=look.marker, s=26, alpha=0.75, zorder=3)
        if values:
            beside = x + 0.24
            axes.plot([beside], [fmean(values)], color=look.color, marker="_", markersize=9, markeredgewidth=2)
            for ends, marks in cut(final.known_interval, (low, high), "v^"):
                axes.plot([beside] * 2, ends, color=look.color, linewidth=1.2)
                for end, mark in marks:
                    axes.plot([beside], [end], color=look.color, marker=mark, markersize=5, clip_on=False)
        if final.failed:
            text, place = f"✕ {final.failed} failed", ("data", "axes fraction")
            axes.annotate(text, (x, 0.02), xycoords=place, ha="center", fontsize="x-small")
    axes.set_xticks(range(len(of)), [broken(name) for name in of], rotation=30, ha="right", fontsize="small")
    axes.set_xlim(-0.5, len(of) - 0.4)
    tidy(axes)


def reach(
    values: Sequence[float], intervals: Sequence[Interval | None], bounds: Interval = (-math.inf, math.inf)
) -> Interval:
    """Return the ends of an axis: all values, and intervals as far again as the values reach."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    further = max(high - low, margin)
    known = [interval for interval in intervals if interval is not None]
    least = max(low - further, bounds[0], min([low, *(ends[0] for ends in known)]))
    most = min(high + further, bounds[1], max([high, *(ends[1] for ends in known)]))
    return least - 1.6 * margin * (least > bounds[0]), most + margin


def cut(
    interval: Interval | None, ends: Interval, arrows: str
) -> Iterator[tuple[list[float], list[tuple[float, str]]]]:
    """Yield the part of an interval, if there is one, that an axis shows, and the arrows where it goes on."""
    if interval is not None:
        shown = [min(max(end, ends[0]), ends[1]) for end in interval]
        pairs = zip(shown, interval, arrows, strict=True)
        yield shown, [(end, arrow) for end, whole, arrow in pairs if end != whole]


def broken(name: str) -> str:
    r"""Return a long name in lines, broken behind commas and colons.

    >>> broken("bn:gamma_init=0.269,skip=shortcut")
    'bn:\ngamma_init=0.269,\nskip=shortcut'
    """
    lines = [""]
    for piece in re.split(r"(?<=[,:;/ ])", name):
        if lines[-1] and len(lines[-1]) + len(piece) > LINE:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def differences(of: Mapping[str, Seeds], x_label: str) -> Figure:
    """Draw differences, one below the other, ours beside a paper's; small dots are seeds, large ones their mean.

    Args:
        of: By label.
        x_label: Of the horizontal axis.
    """
    ours, papers = "#0072B2", "#D55E00"
    figure = new_figure(7.2, 1.3 + 0.27 * len(of))
    axes = figure.subplots()
    axes.axvline(0, color="#666666", linewidth=1)
    handles = {}
    printed = [d.printed for d in of.values() if d.printed is not None]
    seen = [0.0, *printed, *(value for d in of.values() for value in d.values.values())]
    low, high = reach(seen, [d.known_interval for d in of.values()])
    axes.set_xlim(low, high)
    for y, difference in enumerate(of.values()):
        values = list(difference.values.values())
        for ends, marks in cut(difference.known_interval, (low, high), "<>"):
            axes.plot(ends, [y, y], color=ours, linewidth=1.4)
            for end, mark in marks:
                axes.plot([end], [y], color=ours, marker=mark, markersize=5, clip_on=False)
        axes.scatter(values, [y] * len(values), s=10, color=ours, alpha=0.45, linewidths=0)
        handles["ours"] = axes.scatter([fmean(values)], [y], s=34, color=ours, marker="o")
        if difference.printed is not None:
            handles["paper's"] = axes.scatter([difference.printed], [y], s=34, color=papers, marker="D", zorder=3)
    axes.set_yticks(range(len(of)), list(of), fontsize="small")
    axes.invert_yaxis()
    axes.set_xlabel(x_label)
    tidy(axes, "x")
    legend(figure, dict(handles))
    return figure
