"""The outlines of marks, as SVG draws them; matplotlib has them by the same names."""

from __future__ import annotations

import itertools
import math

from calibnorm.report.pictures.style import Style

Corners = list[tuple[float, float]]
HALVES = {"bottom": "50% 0 0 0", "top": "0 0 50% 0", "left": "0 50% 0 0", "right": "0 0 0 50%"}
"""What a filling leaves out at the top, right, bottom and left."""


def polygon(corners: int, turned: float = 0.0, inner: float = 1.0) -> Corners:
    """Return the corners of a regular polygon of radius 1, the first at the top; with an inner radius, of a star."""
    count = corners if inner == 1 else 2 * corners
    turns = [math.tau * (number / count + turned) - math.pi / 2 for number in range(count)]
    radii = itertools.cycle((1.0, inner))
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, turns, strict=False)]


def oblong(width: float, height: float) -> Corners:
    """Return the corners of an oblong around 0."""
    return [(x * width / 2, y * height / 2) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))]


QUARTER = [(1 / 3, -1.0), (1 / 3, -1 / 3), (1.0, -1 / 3)]
PLUS = [*QUARTER, *((-y, x) for x, y in QUARTER), *((-x, -y) for x, y in QUARTER), *((y, -x) for x, y in QUARTER)]
OUTLINES: dict[str, Corners] = {
    "s": oblong(1.7, 1.7), "|": oblong(0.4, 2.0),
    "^": polygon(3), "v": polygon(3, 1 / 2), "<": polygon(3, -1 / 4), ">": polygon(3, 1 / 4),
    "D": polygon(4), "d": [(0.6 * x, y) for x, y in polygon(4)],
    "p": polygon(5), "h": polygon(6), "H": polygon(6, 1 / 12), "*": polygon(5, 0, 0.4),
    "P": PLUS, "X": [(0.75 * (x - y), 0.75 * (x + y)) for x, y in PLUS],
}  # fmt: skip
"""The corners of a mark of radius 1, by its name; a mark that is not here is a circle."""


def shape(style: Style, x: float, y: float, radius: float) -> str:
    """Return a mark, filled as its style is."""
    if not style.marker:
        return ""
    if style.marker in OUTLINES:
        corners = " ".join(f"{x + radius * dx:.1f},{y + radius * dy:.1f}" for dx, dy in OUTLINES[style.marker])
        mark = f'<polygon points="{corners}" {{}}/>'
    else:
        mark = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{0.85 * radius:.1f}" {{}}/>'
    if style.fillstyle == "full":
        return mark.format('class="full"')
    half = HALVES.get(style.fillstyle)
    return mark.format('class="hollow"') + (
        mark.format(f'class="full" style="clip-path:inset({half})"') if half else ""
    )
