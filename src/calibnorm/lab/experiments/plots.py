"""What the pictures of a grid show: learning curves, and the final figures with every seed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from calibnorm.lab import tasks
from calibnorm.lab.experiments.grid import Grid
from calibnorm.lab.experiments.outcomes import curve
from calibnorm.lab.experiments.statistics import Sample
from calibnorm.lab.experiments.summary import Line
from calibnorm.report import pictures
from calibnorm.report.measure import Measure
from calibnorm.report.pictures import Drawing, Seeds

Curves = dict[str, dict[str, dict[str, list[list[tuple[float, float]]]]]]
"""The values over the epochs of every run, by row of the grid, label of the axis and column of the grid."""


def curves(grid: Grid) -> Curves:
    """Return the runs' headline and training loss; nothing where no run has done an epoch.

    What has an error, as a percentage of hits has, is shown by it: small ones differ visibly on a logarithmic axis.
    """
    task = tasks.of(grid.cells[0].recipe)
    measures = [task.headline, *(measure for measure in task.measures if measure.name.startswith("train_"))][:2]
    found: Curves = {row: {axis(measure): {} for measure in measures} for row in grid.rows}
    known = False
    for cell in grid.cells:
        runs = [curve(grid.run(cell, seed)) for seed in grid.seeds]
        known = known or any(runs)
        for measure in measures:
            values = [[(of["epoch"], shown(measure, of[measure.name])) for of in epochs] for epochs in runs]
            found[cell.row][axis(measure)][cell.column] = values
    return found if known else {}


def axis(measure: Measure) -> str:
    """Return the label of a measure's axis."""
    return (measure.error or measure).label_with_unit.replace("train ", "training ")


def shown(measure: Measure, value: float) -> float:
    """Return a value as its axis has it."""
    return 100 - value if measure.error else value


def finals(grid: Grid, lines: Sequence[Line]) -> Drawing:
    """Draw the figure after the last epoch of every run, a panel a row of the grid."""
    panels: dict[str, dict[str, Seeds]] = {row: {} for row in grid.rows}
    for line in lines:
        panels[line.cell.row][line.cell.column] = seeds(line.own, failed=line.failed)
    measure = lines[0].measure
    bounds = (0.0, 100.0) if measure.unit == "%" else (-math.inf, math.inf)
    return pictures.finals(panels, measure.label_with_unit, bounds)


def seeds(sample: Sample, failed: int = 0, printed: float | None = None) -> Seeds:
    """Return a sample as pictures take it."""
    return Seeds(sample.values, sample.interval(), failed, printed)
