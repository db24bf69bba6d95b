"""What a picture shows, before it is drawn: panels with axes and marks. figure.py and svg.py draw it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from calibnorm.report.pictures.style import Style

GREY = "#666666"
PALE = "#BBBBBB"


@dataclass(frozen=True)
class Axis:
    """One direction of a panel.

    Args:
        low: Its beginning.
        high: Its end.
        ticks: Places with their texts.
        label: What it measures.
        logarithmic: Whether equal ratios, not equal differences, are equally far apart.
        names: Whether the ticks are names one below or beside the other, and no numbers.
        down: Whether it runs from above to below.
    """

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    label: str = ""
    logarithmic: bool = False
    names: bool = False
    down: bool = False

    def share(self, value: float) -> float:
        """Return how far from the beginning a value is, from 0 to 1.

        >>> Axis(1, 100, [], logarithmic=True).share(10)
        0.5
        """
        low, high, value = (math.log(v) if self.logarithmic else v for v in (self.low, self.high, value))
        return (value - low) / (high - low)


class Dot(NamedTuple):
    """A place, and what it says when it is pointed at."""

    x: float
    y: float
    says: str = ""


@dataclass(frozen=True)
class Dots:
    """Marks of one kind, whose style has no line.

    Args:
        at: Their places.
        style: Colour, mark and filling.
        size: Width in points of a screen.
    """

    at: Sequence[Dot]
    style: Style
    size: float = 4.5


@dataclass(frozen=True)
class Line:
    """A line through places, dashed as its style is, without marks."""

    x: Sequence[float]
    y: Sequence[float]
    style: Style
    width: float = 1.6


@dataclass(frozen=True)
class Band:
    """What lies between two lines, in a pale colour."""

    x: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    color: str


@dataclass(frozen=True)
class Note:
    """A text that begins at a place."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Shades:
    """A small picture in gray.

    Args:
        left: Where it begins on the horizontal axis.
        right: Where it ends.
        top: Where it begins on the vertical axis.
        bottom: Where it ends.
        rows: From above, each from the left: 0 is black and 1 is white.
        says: What it is, and which values are black and white.
    """

    left: float
    right: float
    top: float
    bottom: float
    rows: Sequence[Sequence[float]]
    says: str


Mark = Dots | Line | Band | Note | Shades


@dataclass(frozen=True)
class Panel:
    """Marks over two axes.

    Args:
        x: The horizontal axis.
        y: The vertical axis.
        marks: From behind to the front.
    """

    x: Axis
    y: Axis
    marks: Sequence[Mark]

    def dots(self) -> Iterator[Dots]:
        """Yield the marks that say something."""
        for mark in self.marks:
            if isinstance(mark, Dots) and any(dot.says for dot in mark.at):
                yield mark

    def summary(self) -> str:
        """Return in words what it shows, for those who cannot see it: its axes, and the last dot of every kind."""
        about = " over ".join(axis.label for axis in (self.y, self.x) if axis.label)
        main = max((dots.size for dots in self.dots()), default=0.0)
        ends = [dots.at[-1].says for dots in self.dots() if dots.size == main]
        return ". ".join(text for text in (about, "; ".join(ends)) if text)


@dataclass(frozen=True)
class Drawing:
    """A picture.

    Args:
        columns: Titles, and the panels below each other that they stand above; None where nothing is known.
        size: Width and height of a panel in inches.
        legend: How the names look that the panels do not name themselves.
        title: Above everything.
    """

    columns: Sequence[tuple[str, Sequence[Panel | None]]]
    size: tuple[float, float]
    legend: Mapping[str, Style]
    title: str = ""
