"""From the runs' outcomes to the lines of a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from calibnorm.lab import tasks
from calibnorm.lab.experiments.grid import Cell, Grid
from calibnorm.lab.experiments.outcomes import Outcome
from calibnorm.lab.experiments.statistics import Sample
from calibnorm.report.measure import Measure


@dataclass(frozen=True)
class Line:
    """One cell over its seeds.

    Args:
        cell: The cell.
        outcomes: By seed.
        measure: What compares runs.
        own: The figure after the last epoch of the runs that finished.
        against: Its differences from the row's baseline; None for the baseline itself and where there is none.
    """

    cell: Cell
    outcomes: Mapping[int, Outcome]
    measure: Measure
    own: Sample
    against: Sample | None

    @property
    def failed(self) -> int:
        """Runs that diverged or ended with an error."""
        return sum(o.state in ("diverged", "failed") for o in self.outcomes.values())

    @property
    def missing(self) -> int:
        """Runs that were not finished."""
        return sum(o.state in ("missing", "busy") for o in self.outcomes.values())

    @property
    def at_chance(self) -> int:
        """Finished runs that learned next to nothing, as their measure says."""
        return self.own.count(self.measure.at_chance)

    @property
    def wins(self) -> int:
        """Seeds in which the cell is better than the baseline."""
        return self.against.count(lambda difference: self.measure.better(difference, 0)) if self.against else 0

    @property
    def losses(self) -> int:
        """Seeds in which the cell is worse than the baseline."""
        return self.against.count(lambda difference: self.measure.better(0, difference)) if self.against else 0

    @property
    def parameters(self) -> int:
        """Learnable numbers of the network; 0 where no run finished."""
        return max((o.result.parameters for o in self.outcomes.values() if o.result), default=0)

    def as_error(self) -> Line:
        """Return the line with errors, 100 % minus the figure, where its measure has them; else the same line."""
        if self.measure.error is None:
            return self
        against = self.against and self.against.mapped(lambda difference: -difference)
        return replace(
            self, measure=self.measure.error, own=self.own.mapped(lambda value: 100 - value), against=against
        )


def summarize(grid: Grid, outcomes: Mapping[Path, Outcome]) -> list[Line]:
    """Return a line for every cell.

    Args:
        grid: The grid.
        outcomes: Of its runs, by folder; a run that is left out counts as none.
    """
    lines: dict[tuple[str, str], Line] = {}
    for cell in grid.cells:
        folders = {seed: grid.run(cell, seed).folder for seed in grid.seeds}
        of = {seed: outcomes[folder] for seed, folder in folders.items() if folder in outcomes}
        measure = tasks.of(cell.recipe).headline
        own = Sample({seed: o.result.figures[measure.name] for seed, o in of.items() if o.result})
        lines[cell.row, cell.column] = Line(cell, of, measure, own, None)
    for (row, column), line in lines.items():
        baseline = grid.baseline.get(row, column)
        if baseline != column:
            lines[row, column] = replace(line, against=line.own.minus(lines[row, baseline].own))
    return list(lines.values())


def results(grid: Grid, lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Return the lines of results.csv: every run, with the figures of its result that are of the test."""
    task = tasks.of(grid.cells[0].recipe)
    tested = [measure.name for measure in task.measures if measure.name.startswith("test_") and measure.in_result]
    shown = dict.fromkeys((task.headline.name, f"best_{task.headline.name}", *tested))
    rows = []
    for line in lines:
        for seed, found in line.outcomes.items():
            figures = found.result.figures if found.result else {}
            rows.append(
                {
                    "row": line.cell.row,
                    "column": line.cell.column,
                    "seed": seed,
                    "state": found.state,
                    **{name: number(figures.get(name, math.nan), line.measure) for name in shown},
                    "parameters": found.result.parameters if found.result else "",
                    "seconds": f"{found.result.seconds:.1f}" if found.result else "",
                    "folder": grid.run(line.cell, seed).folder.relative_to(grid.root).as_posix(),
                    "message": found.message,
                }
            )
    return rows


def summary(line: Line) -> dict[str, Any]:
    """Return a line of summary.csv: a cell over its seeds."""
    against = line.against
    return {
        "row": line.cell.row,
        "column": line.cell.column,
        "finished": len(line.own.values),
        "failed": line.failed,
        "missing": line.missing,
        "at_chance": line.at_chance,
        **moments(("mean", "std", "low95", "high95"), line.own, line.measure),
        **moments(
            ("difference", "difference_std", "difference_low95", "difference_high95"),
            against or Sample({}),
            line.measure,
        ),
        "wins": line.wins if against else "",
        "losses": line.losses if against else "",
        "parameters": line.parameters or "",
    }


def moments(names: Sequence[str], sample: Sample, measure: Measure) -> dict[str, str]:
    """Return a sample's mean, standard deviation and the ends of its interval under four names."""
    values = (sample.mean, sample.std, *(sample.interval() or (math.nan, math.nan)))
    return {name: number(value, measure) for name, value in zip(names, values, strict=True)}


def number(value: float, measure: Measure) -> str:
    """Return a number as a CSV holds it: two digits more than tables show, at least four; nothing for NaN."""
    return "" if math.isnan(value) else f"{value:.{max(4, measure.digits + 2)}f}"
