"""A drawing as HTML with a small SVG for every panel, so that panels stand side by side or below each other.

Colours are custom properties, one for light and one for dark pages. Every mark that says something is a point that
can be focused, and its words stand at the top of the panel while it is.
"""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape

from calibnorm.report.pictures.colors import NIGHT, PAPER, legible
from calibnorm.report.pictures.drawing import GREY, PALE, Axis, Band, Dot, Dots, Drawing, Line, Mark, Panel, Shades
from calibnorm.report.pictures.mosaic import Mosaic
from calibnorm.report.pictures.outlines import shape
from calibnorm.report.pictures.shades import png
from calibnorm.report.pictures.style import Style

INCH, CHARACTER, PROSE, TEXT = 100, 6.8, 6.0, 12
"""Units of the drawing in an inch; the width of a character of a wide font, in names and on average in words, and the
height of a line in them."""
TOP, RIGHT, BELOW = 16, 12, 18
"""Room around the axes: for the label above, which a point's words replace, for the last tick, and for ticks."""
QUIET = {GREY: "quiet", PALE: "thin"}
"""Colours of what is no result, by which class of page.css has them."""
DASHES = {"--": "6 3", ":": "1.5 3", "-.": "7 3 1.5 3"}


def pictured(drawing: Drawing | Mosaic) -> str:
    """Return a drawing as HTML: its legend, and its panels in columns."""
    if isinstance(drawing, Mosaic):
        return drawing.html()
    title = f'<p class="about">{escape(drawing.title)}</p>' if drawing.title else ""
    items = "".join(f"<li>{sample(style)}{escape(name)}</li>" for name, style in drawing.legend.items())
    legend = f'<ul class="legend">{items}</ul>' if items else ""
    columns = []
    for heading, panels in drawing.columns:
        head = f"<p>{escape(heading)}</p>" if heading else ""
        svgs = "".join(Drawn(panel, heading, *drawing.size).svg() for panel in panels if panel is not None)
        columns.append(f'<div class="column">{head}{svgs}</div>')
    size = f"--wide:{INCH * drawing.size[0]:g}px;--count:{len(columns)}"
    return f'{title}{legend}<div class="columns" style="{size}">{"".join(columns)}</div>'


def sample(style: Style) -> str:
    """Return the line and the mark of a name in a legend."""
    line = f'<path class="line"{dashed(style)} d="M0 6H30"/>' if style.linestyle else ""
    inside = f"<g{colored(style.color)}>{line}{shape(style, 15, 6, 4)}</g>"
    return f'<svg class="sample" viewBox="0 0 30 12" aria-hidden="true">{inside}</svg>'


def colored(color: str) -> str:
    """Return the attribute that gives a group its colour on light and on dark pages."""
    if color in QUIET:
        return f' class="{QUIET[color]}"'
    return f' class="c" style="--l:{legible(color, PAPER)};--d:{legible(color, NIGHT)}"'


def dashed(style: Style) -> str:
    """Return the attribute for the dashes of a line."""
    return f' stroke-dasharray="{DASHES[style.linestyle]}"' if style.linestyle in DASHES else ""


@dataclass(frozen=True)
class Drawn:
    """A panel at its place on a screen.

    Args:
        panel: What is drawn.
        heading: What stands above it.
        wide: Its width in inches.
        high: Its height in inches.
    """

    panel: Panel
    heading: str
    wide: float
    high: float

    @cached_property
    def box(self) -> tuple[float, float, float, float]:
        """The ends of the axes: left, right, top and bottom."""
        texts = [line for _, text in self.panel.y.ticks for line in text.split("\n")]
        left = CHARACTER * max(map(len, texts), default=0) + 10
        deep = max((text.count("\n") for _, text in self.panel.x.ticks), default=0) * TEXT
        below = BELOW + deep + (TEXT + 3 if self.panel.x.label else 0)
        top = TOP + 6 if self.panel.y.label else TOP
        return left, INCH * self.wide - RIGHT, top, INCH * self.high - below

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Return where a value lies."""
        left, right, top, bottom = self.box
        down = self.panel.y.share(y) if self.panel.y.down else 1 - self.panel.y.share(y)
        return left + (right - left) * self.panel.x.share(x), top + (bottom - top) * down

    def svg(self) -> str:
        """Return the panel."""
        words = ". ".join(text for text in (self.heading, self.panel.summary()) if text)
        inside = "".join([*self.axes(), *map(self.mark, self.panel.marks)])
        size = f"0 0 {INCH * self.wide:g} {INCH * self.high:g}"
        return f'<svg class="panel" viewBox="{size}" role="group" aria-label="{escape(words)}">{inside}</svg>'

    def axes(self) -> Iterator[str]:
        """Yield the grid, the ticks and their texts, and the labels."""
        left, right, top, bottom = self.box
        x, y = self.panel.x, self.panel.y
        yield '<g class="axes" aria-hidden="true">'
        for at, text in y.ticks:
            _, down = self.place(x.low, at)
            yield ("" if y.names else f'<path class="grid" d="M{left:.1f} {down:.1f}H{right:.1f}"/>')
            yield lines(text, left - 6, down, "end")
        for at, text in spaced(x, right - left):
            across, _ = self.place(at, y.low)
            yield f'<path class="grid" d="M{across:.1f} {top}V{bottom:.1f}"/>' if y.names else ""
            yield lines(text, across, bottom + 11 + TEXT / 2 * text.count("\n"), "middle")
        yield f'<path class="base" d="M{left:.1f} {bottom:.1f}H{right:.1f}"/>'
        if y.label:
            yield f'<text class="label" x="2" y="10"{self.squeezed(y.label)}>{escape(y.label)}</text>'
        if x.label:
            where = f'x="{right:.1f}" y="{INCH * self.high - 4:.1f}" text-anchor="end"{self.squeezed(x.label)}'
            yield f'<text class="label" {where}>{escape(x.label)}</text>'
        yield "</g>"

    def squeezed(self, text: str) -> str:
        """Return the attributes that keep a long text inside the panel."""
        room = INCH * self.wide - RIGHT - 2
        return f' textLength="{room:g}" lengthAdjust="spacingAndGlyphs"' if len(text) * PROSE > room else ""

    def mark(self, mark: Mark) -> str:
        """Return one mark."""
        match mark:
            case Dots(at, style):
                return f"<g{colored(style.color)}>{''.join(self.dot(dot, mark) for dot in at)}</g>"
            case Line(x, y, style, width):
                path = f'<path class="line" stroke-width="{width:g}"{dashed(style)} d="M{self.path(x, y)}"/>'
                return f"<g{colored(style.color)}>{path}</g>"
            case Band(x, low, high, color):
                there, back = self.path(x, high), self.path(x[::-1], low[::-1])
                return f'<g{colored(color)}><path class="band" d="M{there}L{back}Z"/></g>'
            case Shades():
                return self.shades(mark)
            case _:
                across, down = self.place(mark.x, mark.y)
                return f'<text class="note" x="{across + 4:.1f}" y="{down + 4:.1f}">{escape(mark.text)}</text>'

    def path(self, x: Sequence[float], y: Sequence[float]) -> str:
        """Return places as those of a path."""
        return "L".join("{:.1f} {:.1f}".format(*self.place(*at)) for at in zip(x, y, strict=True))

    def dot(self, dot: Dot, of: Dots) -> str:
        """Return a mark; one that says something can be focused, has a larger place to be pointed at, and its words."""
        x, y = self.place(dot.x, dot.y)
        seen = shape(of.style, x, y, 0.75 * of.size)
        if not dot.says:
            return seen
        target = f'<circle class="target" cx="{x:.1f}" cy="{y:.1f}" r="{max(7, of.size):g}"/>'
        return self.point(dot.says, target + seen)

    def shades(self, of: Shades) -> str:
        """Return a small picture, which can be focused as a point can."""
        (left, top), (right, bottom) = self.place(of.left, of.top), self.place(of.right, of.bottom)
        where = f'x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}"'
        data = f"data:image/png;base64,{b64encode(png(of.rows)).decode()}"
        image = f'<image {where} preserveAspectRatio="none" href="{data}"/>'
        return self.point(of.says, f'{image}<rect class="target" {where}/>')

    def point(self, says: str, seen: str) -> str:
        """Return what can be focused, with its words."""
        words = escape(says)
        return (
            f'<g class="point" tabindex="0" role="img" aria-label="{words}"><title>{words}</title>{seen}'
            f'<text class="says" x="2" y="10"{self.squeezed(says)}>{words}</text></g>'
        )


def spaced(axis: Axis, room: float) -> list[tuple[float, str]]:
    """Return the ticks of a horizontal axis that have room beside each other: all, or every second, and so on."""
    widest = CHARACTER * max((len(line) for _, text in axis.ticks for line in text.split("\n")), default=0) + 6
    return list(axis.ticks[:: max(1, math.ceil(widest * len(axis.ticks) / room)) if not axis.names else 1])


def lines(text: str, x: float, y: float, anchor: str) -> str:
    """Return a text of one or more lines around a place."""
    rows = text.split("\n")
    first = y + 4 - TEXT / 2 * (len(rows) - 1)
    spans = "".join(
        f'<tspan x="{x:.1f}" y="{first + TEXT * n:.1f}">{escape(row)}</tspan>' for n, row in enumerate(rows)
    )
    return f'<text text-anchor="{anchor}">{spans}</text>'
