"""From the runs' outcomes to the lines of a table."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibnorm.lab import data
from calibnorm.lab.experiments import statistics
from calibnorm.lab.experiments.grid import Cell, Grid
from calibnorm.lab.experiments.outcomes import Outcome, outcome
from calibnorm.lab.experiments.statistics import Interval, Paired
from calibnorm.report.files import write_whole


@dataclass(frozen=True)
class Line:
    """One cell over its seeds.

    Args:
        cell: The cell.
        outcomes: By seed.
        chance: The accuracy of guessing, in percent.
        against: The differences from the row's baseline; None for the baseline itself and where there is none.
    """

    cell: Cell
    outcomes: Mapping[int, Outcome]
    chance: float
    against: Paired | None

    @property
    def accuracies(self) -> dict[int, float]:
        """Test accuracy after the last epoch in percent, by seed, of the runs that finished."""
        return accuracies(self.outcomes)

    @property
    def mean(self) -> float:
        """Of the accuracies; NaN where none finished."""
        return statistics.mean(list(self.accuracies.values()))

    @property
    def std(self) -> float:
        """Sample standard deviation of the accuracies; NaN for fewer than two."""
        return statistics.std(list(self.accuracies.values()))

    @property
    def interval(self) -> Interval | None:
        """Of the mean accuracy; None for fewer than two."""
        return statistics.interval(list(self.accuracies.values()))

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
        """Finished runs that learned next to nothing: at most twice the accuracy of guessing."""
        return sum(value <= 2 * self.chance for value in self.accuracies.values())

    @property
    def parameters(self) -> int:
        """Learnable numbers of the network; 0 where no run finished."""
        return max((o.parameters for o in self.outcomes.values()), default=0)


def accuracies(outcomes: Mapping[int, Outcome]) -> dict[int, float]:
    """Return the accuracies of the runs that finished, by seed."""
    return {seed: o.accuracy for seed, o in outcomes.items() if o.finished}


def summarize(grid: Grid, failed: Mapping[Path, Outcome]) -> list[Line]:
    """Return a line for every cell.

    Args:
        grid: The grid.
        failed: What is known of runs beyond what their folders say.
    """

    def look(cell: Cell, seed: int) -> Outcome:
        run = grid.run(cell, seed)
        found = outcome(run)
        return failed.get(run.folder, found) if found.state == "missing" else found

    outcomes = {(c.row, c.column): {seed: look(c, seed) for seed in grid.seeds} for c in grid.cells}
    lines = []
    for cell in grid.cells:
        of, baseline = outcomes[cell.row, cell.column], grid.baseline.get(cell.row)
        against = None
        if baseline is not None and baseline != cell.column:
            against = statistics.paired(accuracies(of), accuracies(outcomes[cell.row, baseline]))
        classes = data.info(cell.recipe.data).classes
        lines.append(Line(cell, of, 100 / classes if classes else math.nan, against))
    return lines


def write_results(path: Path, grid: Grid, lines: Sequence[Line]) -> None:
    """Write results.csv: every run, as a table shows it."""
    rows = [
        {
            "row": line.cell.row,
            "column": line.cell.column,
            "seed": seed,
            "state": found.state,
            "test_accuracy": number(found.accuracy),
            "best_test_accuracy": number(found.best),
            "test_top5": number(found.top5),
            "parameters": found.parameters or "",
            "seconds": number(found.seconds, 1),
            "folder": grid.run(line.cell, seed).folder.relative_to(grid.root).as_posix(),
            "message": found.message,
        }
        for line in lines
        for seed, found in line.outcomes.items()
    ]
    write_csv(path, rows)


def write_summary(path: Path, lines: Iterable[Line], extra: Sequence[Mapping[str, Any]] = ()) -> None:
    """Write summary.csv: every cell over its seeds; ``extra`` adds columns, one mapping a line."""
    rows = []
    for line in lines:
        own, against = line.interval, line.against
        between = against.interval if against is not None else None
        rows.append(
            {
                "row": line.cell.row,
                "column": line.cell.column,
                "finished": len(line.accuracies),
                "failed": line.failed,
                "missing": line.missing,
                "at_chance": line.at_chance,
                "mean": number(line.mean),
                "std": number(line.std),
                "low95": number(own.low) if own else "",
                "high95": number(own.high) if own else "",
                "difference": number(against.mean) if against else "",
                "difference_std": number(against.std) if against else "",
                "difference_low95": number(between.low) if between else "",
                "difference_high95": number(between.high) if between else "",
                "wins": against.wins if against else "",
                "losses": against.losses if against else "",
                "parameters": line.parameters or "",
            }
        )
    write_csv(path, [{**row, **more} for row, more in zip(rows, extra or [{}] * len(rows), strict=True)])


def number(value: float, digits: int = 4) -> str:
    """Return a number as a CSV holds it: nothing for NaN."""
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write mappings with the same keys, one a line."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue().encode())
