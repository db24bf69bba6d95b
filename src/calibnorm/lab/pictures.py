"""What all pictures share. It imports matplotlib alone: a bench draws where scikit-learn is not installed."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure


def tidy(axes: Axes) -> None:
    """Take away what carries no information."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)


def save(figure: Figure, path: Path) -> None:
    """Write a PNG without the matplotlib version in it, so that equal pictures are equal files."""
    figure.savefig(path, dpi=150, metadata={"Software": None})
