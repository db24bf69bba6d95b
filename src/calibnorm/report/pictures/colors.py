"""Colours that stand out from what they are drawn on."""

from __future__ import annotations

PAPER, NIGHT = "#FFFFFF", "#14171C"
"""The backgrounds of a page, in light and in dark mode; page.css has the same."""
LEAST = {PAPER: 3.0, NIGHT: 4.5}
"""WCAG 2.2 (1.4.11) asks for a contrast of 3 of what a picture is understood by; thin lines on black need more."""


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours, from 1 to 21, as WCAG defines it.

    >>> round(contrast("#000000", "#FFFFFF"), 1), contrast("#777777", "#777777")
    (21.0, 1.0)
    """
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def luminance(color: str) -> float:
    """Return the relative luminance of a colour in sRGB, from 0 to 1."""
    shares = [level / 255 for level in levels(color)]
    red, green, blue = (s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def levels(color: str) -> tuple[int, ...]:
    """Return the levels of red, green and blue, from 0 to 255."""
    return tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))


def mixed(color: str, other: str, share: float) -> str:
    """Return a colour with a share of another in it.

    >>> mixed("#000000", "#FFFFFF", 0.5)
    '#808080'
    """
    pairs = zip(levels(color), levels(other), strict=True)
    return "#" + "".join(f"{round(share * of + (1 - share) * own):02X}" for own, of in pairs)


def legible(color: str, background: str) -> str:
    """Return the colour, or the nearest one on its way to black or white that stands out from a background.

    Black and white change places where they would not be seen: a colour of its own would make grey of them.

    >>> legible("#0072B2", PAPER), legible("#000000", NIGHT), legible("#56B4E9", PAPER)
    ('#0072B2', '#F0F0F0', '#4A9BC8')
    """
    if color == "#000000" and background == NIGHT:
        return "#F0F0F0"
    away = max("#000000", "#FFFFFF", key=lambda end: contrast(end, background))
    shares = (number / 50 for number in range(51))
    return next(
        found for share in shares if contrast(found := mixed(color, away, share), background) >= LEAST[background]
    )
