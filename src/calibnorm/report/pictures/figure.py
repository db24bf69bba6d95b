"""A drawing as a figure of matplotlib, for PNG files; matplotlib is imported when something is drawn."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from calibnorm.report.files import write_whole
from calibnorm.report.pictures.drawing import Axis, Band, Dots, Drawing, Line, Mark, Panel, Shades
from calibnorm.report.pictures.mosaic import Mosaic
from calibnorm.report.pictures.style import Style, shape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Place = Literal["outside upper center", "outside lower center"]


def figure(drawing: Drawing | Mosaic) -> Figure:
    """Return a drawing as a figure: its columns side by side, as many as fit, the others below."""
    from matplotlib.figure import Figure

    if isinstance(drawing, Mosaic):
        return drawing.figure()

    stack = max(len(panels) for _, panels in drawing.columns)
    across, deep = shape(len(drawing.columns))
    wide, high = drawing.size
    if any(panel and panel.y.names for _, panels in drawing.columns for panel in panels):
        wide += 1.0  # names take more room than numbers
    made = Figure(figsize=(0.6 + wide * across, 0.9 + high * stack * deep), layout="constrained")
    grid = made.subplots(stack * deep, across, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for number, (title, panels) in enumerate(drawing.columns):
        first = stack * (number // across)
        grid[first][number % across].set_title(title, fontsize="medium")
        for below, panel in enumerate(panels):
            if panel is not None:
                draw(grid[first + below][number % across], panel, lowest=below == len(panels) - 1)
    made.align_ylabels()
    made.suptitle(drawing.title, fontsize=10)
    legend(made, drawing.legend, "outside lower center" if drawing.title else "outside upper center")
    return made


def draw(axes: Axes, panel: Panel, lowest: bool) -> None:
    """Draw a panel."""
    axes.set_axis_on()
    for mark in panel.marks:
        draw_mark(axes, mark)
    x, y = panel.x, panel.y
    axes.set(xscale="log" if x.logarithmic else "linear", yscale="log" if y.logarithmic else "linear")
    axes.set(xlim=ends(x), ylim=ends(y))
    axes.set_xlabel(x.label if lowest else "", fontsize="small")
    axes.set_ylabel(y.label.replace(": ", ":\n"), fontsize="small")
    axes.minorticks_off()
    axes.set_xticks([at for at, _ in x.ticks], [text for _, text in x.ticks], fontsize="small")
    axes.set_yticks([at for at, _ in y.ticks], [text for _, text in y.ticks], fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x" if y.names else "y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)


def ends(axis: Axis) -> tuple[float, float]:
    """Return the ends of an axis as matplotlib has them."""
    return (axis.high, axis.low) if axis.down else (axis.low, axis.high)


def draw_mark(axes: Axes, mark: Mark) -> None:
    """Draw one mark."""
    match mark:
        case Dots(at, style, size):
            x, y = [dot.x for dot in at], [dot.y for dot in at]
            look: Any = {"marker": style.marker, "color": style.color, "fillstyle": style.fillstyle, "clip_on": False}
            axes.plot(x, y, linestyle="none", markersize=size, markeredgewidth=edge(style), **look)
        case Line(x, y, style, width):
            axes.plot(x, y, color=style.color, linestyle=style.linestyle, linewidth=width)
        case Band(x, low, high, color):
            axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
        case Shades(left, right, top, bottom, rows):
            extent = left, right, bottom, top
            axes.imshow(rows, cmap="gray", vmin=0, vmax=1, aspect="auto", extent=extent, zorder=1)  # above the grid
        case _:
            axes.annotate(mark.text, (mark.x, mark.y), va="center", fontsize="x-small")


def edge(style: Style) -> float:
    """Return how wide the outline of a mark is: one that is a stroke is wider."""
    return 2.0 if style.marker == "|" else 1.0


def legend(made: Figure, looks: Mapping[str, Style], place: Place) -> None:
    """Draw a legend outside the panels."""
    from matplotlib.lines import Line2D

    if not looks:
        return
    handles = []
    for s in looks.values():
        line: Any = {"marker": s.marker, "linestyle": s.linestyle or "none", "fillstyle": s.fillstyle}
        handles.append(Line2D([], [], color=s.color, **line))
    widths, width = [0.45 + 0.085 * len(name) for name in looks], made.get_figwidth()  # in inches, about
    across = len(looks) if sum(widths) < width else max(1, int(width / max(widths)))
    made.legend(handles, list(looks), loc=place, ncols=across, frameon=False)


def save(made: Figure, path: Path) -> None:
    """Write a PNG, or a JPEG where the name ends so, without matplotlib's version: equal pictures are equal files."""
    data = io.BytesIO()
    if path.suffix == ".jpg":
        made.savefig(data, format="jpg", dpi=120, pil_kwargs={"quality": 88})
    else:
        made.savefig(data, format="png", dpi=150, metadata={"Software": None})
    write_whole(path, data.getvalue())
