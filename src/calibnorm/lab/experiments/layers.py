"""What trained networks have learned layer by layer, and what their gates do on the test images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import calibnorm as cn
from calibnorm.lab import models
from calibnorm.lab.experiments.grid import Grid
from calibnorm.lab.experiments.summary import Line
from calibnorm.lab.training.trained import Trained, trained
from calibnorm.report import pictures
from calibnorm.report.document import Paragraph, Picture, Section, Table
from calibnorm.report.pictures import Point

Rows = list[dict[str, Any]]
"""Quantities of `calibnorm.inspect` as mappings, with the condition and the norm of their run."""
ONE_EACH = "Networks of the first seed of each norm and condition."
ON_DATA = ("images", "std_over_images", "spread")
"""What a gate has, and a learned tensor has not."""


def read(of: Trained, condition: str, norm: str) -> Rows:
    """Return the learned tensors of a network's layers, and its gates on the test images; none of plain BatchNorm."""
    if models.parse_norm(of.task.recipe.norm).method == "bn":
        return []
    with cn.inspect.watch_gates(of.network) as watch:  # networks may take more than images, as detectors do
        of.headline()
    found = [*cn.inspect.learned(of.network), *watch.report()]
    return [{"condition": condition, "norm": norm} | dict.fromkeys(ON_DATA) | vars(row) for row in found]


def networks(grid: Grid, lines: Iterable[Line], data_root: Path) -> Iterator[tuple[Trained, str, str]]:
    """Yield a grid's networks, in each cell that of the first seed that is finished, with its condition and its norm.

    Raises:
        UsageError: Weights are missing or damaged, or images are missing.
    """
    for line in lines:
        seed = next((seed for seed, found in line.outcomes.items() if found.finished), None)
        if seed is not None:
            with trained(grid.run(line.cell, seed).folder, data_root) as of:
                yield of, line.cell.row, line.cell.column


def section(rows: Rows, about: str) -> Section:
    """Return the picture of what networks have learned by layer.

    Args:
        rows: By condition and norm.
        about: Whose networks these are, in a sentence.
    """
    columns: dict[str, dict[str, dict[str, list[Point]]]] = {}
    starts: dict[tuple[str, str], float] = {}
    one = len({row["norm"] for row in rows}) == 1
    for row in rows:
        title = row["quantity"] if one else row["norm"]
        panel = columns.setdefault(title, {}).setdefault(row["quantity"], {})
        panel.setdefault(row["condition"], []).append(Point(row["depth"], row["mean"], row["p10"], row["p90"]))
        if row["initial"] is not None:
            starts[title, row["quantity"]] = row["initial"]
    explained = (
        f"{about} Lines are means over a layer's channels; bands hold the middle eight tenths. A gate itself is "
        "averaged over the test images."
    )
    draw = partial(pictures.bands, columns, "norm layer, from input to output", starts, logarithmic=False)
    picture = Picture("gates.png", "Gates and calibration weights by layer", draw)
    return Section("Learned gates by layer", [Paragraph(explained), picture] if rows else [], on="file")


def numbers(rows: Rows) -> Section:
    """Return the same in numbers, layer by layer."""
    shown = ("condition", "norm", "layer", "quantity", "mean", "p10", "p90", "std_over_images", "spread")
    table = Table.of([{name: row[name] for name in shown} for row in rows], left=4)
    return Section("Learned gates in numbers", [table], on="page", folded=True)


def follows(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for every network that has gates: how far they follow the image."""
    gates: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["quantity"] == "gate":
            gates.setdefault((row["condition"], row["norm"]), []).append(row)
    return [f"{condition}, {norm}: {sentence(of)}" for (condition, norm), of in gates.items()]


def sentence(gates: list[Mapping[str, Any]]) -> str:
    """Say how far the gates of a network follow the image."""
    mean = sum(gate["mean"] for gate in gates) / len(gates)
    std = sum(gate["std_over_images"] for gate in gates) / len(gates)
    start = gates[0]["initial"]
    began = "" if start is None else f" (it started at {start:.3f})"
    constant = " For practical purposes that is a constant." if std < 0.01 * mean else ""
    return (
        f"the gate is {mean:.3f} on average over layers and channels{began}; from one test image to another it varies "
        f"by {std:.2g} (std).{constant}"
    )
