"""Ratios to a baseline by group, on a logarithmic axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import geometric_mean

from calibnorm.report.pictures import axes
from calibnorm.report.pictures.drawing import GREY, Axis, Dot, Dots, Drawing, Line, Mark, Panel
from calibnorm.report.pictures.style import Style, styles

TICKS = (0.1, 0.2, 0.3, 0.5, 1, 2, 3, 5, 10)
Groups = Mapping[str, Mapping[str, Sequence[float]]]
"""Ratios by group and name."""


def ratios(panels: Mapping[str, Mapping[str, Groups]], y_label: str, title: str = "") -> Drawing:
    """Draw ratios: small marks are single ones, large marks the geometric means of their groups.

    Args:
        panels: By label of the row, title of the column, group and name.
        y_label: What the ratios are, behind the label of each row.
        title: Above everything.
    """
    columns = list(dict.fromkeys(column for row in panels.values() for column in row))
    everything = [groups for row in panels.values() for groups in row.values()]
    groups = list(dict.fromkeys(group for of in everything for group in of))
    names = list(dict.fromkeys(name for of in everything for by_name in of.values() for name in by_name))
    values = [value for of in everything for by_name in of.values() for found in by_name.values() for value in found]
    bottom, top = min(0.8 * min(values), 0.25), max(1.25 * max(values), 2)
    ticks = [(tick, f"{tick:g}") for tick in TICKS if bottom <= tick <= top]
    looks = {name: replace(style, linestyle="") for name, style in styles(names).items()}

    def panel(label: str, of: Groups) -> Panel:
        marks: list[Mark] = [Line([-0.5, len(groups) - 0.5], [1, 1], Style(GREY, "", "-"), 1)]
        for position, group in enumerate(groups):
            for name, found in of.get(group, {}).items():
                at = position + 0.8 * ((names.index(name) + 0.5) / len(names) - 0.5)
                mean = geometric_mean(found)
                says = f"{name}, {' '.join(group.split())}: {mean:.2f} (mean of {len(found)})"
                marks.append(Dots([Dot(at, value) for value in found], replace(looks[name], fillstyle="full"), 2))
                marks.append(Dots([Dot(at, mean, says)], looks[name], 7))
        return Panel(axes.names(groups), Axis(bottom, top, ticks, f"{label}: {y_label}", logarithmic=True), marks)

    drawn = [
        (column, [panel(label, row[column]) if column in row else None for label, row in panels.items()])
        for column in columns
    ]
    return Drawing(drawn, (max(2.9, 0.9 * len(groups)), 2.5), looks, title)
