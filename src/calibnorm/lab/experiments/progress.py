"""Training a grid behind a progress bar, and what is said where it does not end well."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from calibnorm.lab.experiments.config import Common
from calibnorm.lab.experiments.grid import Grid
from calibnorm.lab.experiments.outcomes import Outcome, epochs_done, outcome
from calibnorm.lab.experiments.workers import Settings, train_all


def train_grid(grid: Grid, config: Common, console: Console) -> dict[Path, Outcome]:
    """Train what is missing of a grid.

    The bar counts epochs, as the runs' own folders tell them: also those that another command does.

    Returns:
        How the runs that failed here did, by folder.
    """
    runs = grid.runs()
    total = sum(run.recipe.epochs for run in runs)
    done = sum(outcome(run).state != "missing" for run in runs)
    if done:
        console.print(f"{done} of {len(runs)} runs are there already", highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task(f"{len(runs)} runs", total=total)
        settings = Settings(config.data_root, config.accelerator)
        return train_all(runs, config.processes, settings, lambda: progress.update(bar, completed=epochs_done(runs)))


def complaints(grid: Grid, failed: Mapping[Path, Outcome]) -> list[str]:
    """Return a sentence for every run that diverged or ended with an error."""
    said = []
    for run in grid.runs():
        found = outcome(run)
        found = failed.get(run.folder, found) if found.state == "missing" else found
        if found.state in ("diverged", "failed"):
            place = run.folder.relative_to(grid.root)
            log = f" (log: {run.log})" if run.log.exists() else ""
            said.append(f"{place} {found.state}: {found.message}{log}")
    return said
