"""Training a grid behind a progress bar, and what is said where it does not end well."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from calibnorm.errors import Stopped
from calibnorm.lab.experiments.config import Common
from calibnorm.lab.experiments.grid import Grid
from calibnorm.lab.experiments.outcomes import Outcome, epochs_done, outcome
from calibnorm.lab.experiments.worker_process import Settings
from calibnorm.lab.experiments.workers import train_all


def train_grid(grid: Grid, config: Common, console: Console) -> dict[Path, Outcome]:
    """Train what is missing of a grid.

    The bar counts epochs, as the runs' own folders tell them: also those that another command does.

    Returns:
        How the runs that failed here did, by folder.

    Raises:
        Stopped: By Ctrl-C or SIGTERM.
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
        try:
            return train_all(
                runs, config.processes, settings, lambda: progress.update(bar, completed=epochs_done(runs))
            )
        except KeyboardInterrupt:
            raise Stopped(signal.SIGINT, "stopped") from None


def complaints(grid: Grid, failed: Mapping[Path, Outcome]) -> list[str]:
    """Return a sentence for every run that did not finish: it diverged, ended with an error, or is not there."""
    said = []
    for run in grid.runs():
        found = outcome(run)
        found = failed.get(run.folder, found) if found.state == "missing" else found
        if not found.finished:
            place = run.folder.relative_to(grid.root)
            log = f" (log: {run.log})" if run.log.exists() else ""
            said.append(f"{place} {found.state}: {found.message or 'it has no result'}{log}")
    return said


def stopped(grid: Grid, number: int) -> int:
    """Say what a signal left, and return the exit status."""
    how = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    print(
        f"\ncalibnorm: stopped by {how}; {grid.root} keeps what is done, and the same command goes on from there",
        file=sys.stderr,
    )
    return 128 + number
