"""Every run's final value, and differences beside a paper's."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from calibnorm.report.pictures import axes
from calibnorm.report.pictures.drawing import GREY, PALE, Dot, Dots, Drawing, Line, Mark, Note, Panel
from calibnorm.report.pictures.style import Style, styles

Interval = tuple[float, float]
LEAST = 3
"""Intervals are drawn from so many runs on: that of two is 12.7 times as wide as they are apart."""
LINE = 20
"""Labels are broken into lines of about so many characters."""
OURS, PAPERS = Style("#0072B2", "o", "-"), Style("#D55E00", "D", "")
WIDE, ROW = 3.5, 0.42
"""The width of a panel, and the height of a name's row, in inches."""


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

    def mean(self, name: str) -> Dot:
        """Return the mean, and in words what it is of."""
        mean, interval = fmean(self.values.values()), self.known_interval
        within = f", 95 % interval {interval[0]:.4g} to {interval[1]:.4g}" if interval else ""
        return Dot(mean, 0, f"{name}, mean: {mean:.4g}{within}")


def finals(
    panels: Mapping[str, Mapping[str, Seeds]], x_label: str, bounds: Interval = (-math.inf, math.inf)
) -> Drawing:
    """Draw the final value of every run; below the runs their mean with its interval.

    Thin lines connect the runs of a seed. Runs that failed are counted at the side. An interval that is far wider
    than the values are apart ends at the panel's border, with an arrow.

    Args:
        panels: By title and name.
        x_label: Of the horizontal axis.
        bounds: What values can be at all.
    """
    looks = styles(name for of in panels.values() for name in of)
    most = max(len(of) for of in panels.values())
    drawn = [(title, [finals_panel(of, looks, x_label, bounds)]) for title, of in panels.items()]
    return Drawing(drawn, (WIDE, 0.7 + ROW * most), {})


def finals_panel(of: Mapping[str, Seeds], looks: Mapping[str, Style], label: str, bounds: Interval) -> Panel:
    """Return one panel: a row for every name."""
    known = [final for final in of.values() if final.values]
    low, high = reach([v for f in known for v in f.values.values()], [f.known_interval for f in known], bounds)
    marks: list[Mark] = []
    for seed in dict.fromkeys(seed for final in of.values() for seed in final.values):
        rows = [(final.values[seed], y) for y, final in enumerate(of.values()) if seed in final.values]
        values, places = zip(*rows, strict=True)
        marks.append(Line(values, places, Style(PALE, "", "-"), 0.7))
    for y, (name, final) in enumerate(of.items()):
        runs = [Dot(value, y, f"{name}, seed {seed}: {value:.4g}") for seed, value in final.values.items()]
        if final.values:
            marks.append(Dots(runs, replace(looks[name], fillstyle="full"), 4))
            marks += interval(final.known_interval, (low, high), y + 0.27, looks[name])
            marks.append(Dots([final.mean(name)._replace(y=y + 0.27)], replace(looks[name], marker="|"), 9))
        if final.failed:
            marks.append(Note(low, y, f"✕ {final.failed} failed"))
    return Panel(axes.linear(low, high, label, 0), axes.names([broken(name) for name in of], down=True), marks)


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
    return least - margin * (least > bounds[0]), most + margin


def interval(of: Interval | None, ends: Interval, y: float, style: Style) -> Iterator[Mark]:
    """Yield the part of an interval, if there is one, that an axis shows, and arrows where it goes on."""
    if of is None:
        return
    shown = [min(max(end, ends[0]), ends[1]) for end in of]
    yield Line(shown, [y, y], replace(style, linestyle="-"), 1.3)
    for end, whole, arrow in zip(shown, of, "<>", strict=True):
        if end != whole:
            yield Dots([Dot(end, y)], replace(style, marker=arrow, fillstyle="full"), 5)


def broken(name: str) -> str:
    r"""Return a long name in lines, broken behind commas and colons, and first between the name of a row and the rest.

    >>> broken("bn:gamma_init=0.269,skip=shortcut"), broken("clean: bn:gamma_init=0.269")
    ('bn:gamma_init=0.269,\nskip=shortcut', 'clean:\nbn:gamma_init=0.269')
    """
    row, colon, rest = name.partition(": ")
    if colon and len(name) > LINE:
        return f"{row}:\n{broken(rest)}"
    lines = [""]
    for piece in re.split(r"(?<=[,:;/ ])", name):
        if lines[-1] and len(lines[-1]) + len(piece) > LINE:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def differences(of: Mapping[str, Seeds], x_label: str) -> Drawing:
    """Draw differences, one below the other, ours beside a paper's; small dots are seeds, large ones their mean.

    Args:
        of: By label.
        x_label: Of the horizontal axis.
    """
    printed = [d.printed for d in of.values() if d.printed is not None]
    seen = [0.0, *printed, *(value for d in of.values() for value in d.values.values())]
    low, high = reach(seen, [d.known_interval for d in of.values()])
    marks: list[Mark] = [Line([0, 0], [-0.5, len(of) - 0.5], Style(GREY, "", "-"), 1)]
    for y, (name, difference) in enumerate(of.items()):
        marks += interval(difference.known_interval, (low, high), y, OURS)
        runs = [Dot(value, y, f"{name}, seed {seed}: {value:+.4g}") for seed, value in difference.values.items()]
        marks.append(Dots(runs, replace(OURS, fillstyle="none"), 4))
        marks.append(Dots([difference.mean(name)._replace(y=y)], OURS, 6.5))
        if difference.printed is not None:
            marks.append(Dots([Dot(difference.printed, y, f"{name}, paper: {difference.printed:+.4g}")], PAPERS, 6))
    legend = {"ours": replace(OURS, linestyle=""), "paper's": PAPERS} if printed else {}
    panel = Panel(axes.linear(low, high, x_label, 0), axes.names([broken(name) for name in of], down=True), marks)
    return Drawing([("", [panel])], (WIDE, 0.7 + 0.9 * ROW * len(of)), legend)
