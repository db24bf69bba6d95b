"""What the two papers print, from published.yaml: the only place where their numbers are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

PAPERS = {
    "iebn": "Liang et al., Instance Enhancement Batch Normalization, AAAI 2020, arXiv 1908.04008",
    "rbn": "Gao et al., Representative Batch Normalization with Feature Calibration, CVPR 2021",
}


@dataclass(frozen=True)
class Printed:
    """One number of a table.

    Args:
        value: Top-1 accuracy or error, in percent; of a detector the AP, mask AP or PQ that compares runs.
        std: The standard deviation that the paper prints behind ±.
        top5: Top-5 error in percent, where the paper prints one.
        parameters: Millions, where the paper prints them.
        figures: What else it prints of a detector, by the names of our figures.
    """

    value: float
    std: float | None = None
    top5: float | None = None
    parameters: float | None = None
    figures: tuple[tuple[str, float], ...] = ()


def parse(text: str) -> dict[str, Any]:
    """Return what a YAML text says: scalars, lists and mappings; a tag that asks for anything else raises YAMLError."""
    content = yaml.safe_load(text)
    if not isinstance(content, dict):
        raise ValueError(f"published figures must be a mapping, not {type(content).__name__}")
    return content


@cache
def of_paper(name: str) -> dict[str, Any]:
    """Return what published.yaml has of a paper, "iebn" or "rbn"; callers leave it unchanged.

    >>> of_paper("iebn")["table4"]["operator"]["linear"], of_paper("iebn")["recipes"]["resnet164"]["batch"]
    ([77.09, 0.15], 128)
    """
    text = files(__package__).joinpath("published.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = parse(text)[name]
    return content
