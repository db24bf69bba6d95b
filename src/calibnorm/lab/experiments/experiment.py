"""Training a grid from its start to its report: what `calibnorm compare` and `calibnorm table` have in common."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from calibnorm._stopping import name_of
from calibnorm.errors import Stopped
from calibnorm.lab.experiments.config import Common
from calibnorm.lab.experiments.grid import Grid, write_note
from calibnorm.lab.experiments.outcomes import Outcome, curve, epochs_done, outcome, outcomes
from calibnorm.lab.experiments.report import Report
from calibnorm.lab.experiments.summary import Line, summarize
from calibnorm.lab.experiments.worker_process import Settings
from calibnorm.lab.experiments.workers import train_all
from calibnorm.lab.training.machine import check_memory
from calibnorm.report import screen


def carry_out(
    grid: Grid,
    config: Common,
    note: dict[str, Any],
    tell: Callable[[Sequence[Line], Sequence[str], float], Report],
    console: Console,
) -> int:
    """Train what is missing of a grid, print the report and write it.

    Args:
        grid: The runs, which have been checked.
        config: How and where they are trained.
        note: What is in the folder, for the next command that is given it.
        tell: Makes the report of a line for every cell, a sentence for every run that did not finish, and the seconds
            that it took.
        console: Where to print.

    Returns:
        The exit status: 0; 1 where runs failed or are missing, 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        UsageError: The folder cannot be written.
    """
    start = time.perf_counter()
    for run in grid.runs():
        if outcome(run).finished:  # what the pictures need of it is found out before others are trained
            curve(run)
    check_memory("jobs", min(config.processes, sum(outcome(run).state == "missing" for run in grid.runs())))
    write_note(grid.root, note)
    try:
        ended = outcomes(grid.runs(), train_grid(grid, config, console))
    except Stopped as stop:
        return stopped(grid, stop.number)
    unfinished = complaints(grid, ended, config.after_divergence)
    report = tell(summarize(grid, ended), unfinished, time.perf_counter() - start)
    page, *_ = report.write()
    report.show(console)
    screen.say_where(console, page, report.seconds)
    return 1 if unfinished else 0


def train_grid(grid: Grid, config: Common, console: Console) -> dict[Path, Outcome]:
    """Train what is missing of a grid.

    The bar counts epochs, as the runs' own folders tell them: also those that another command does.

    Returns:
        How the runs that failed here did, by folder.

    Raises:
        Stopped: By Ctrl-C or SIGTERM.
    """
    runs = grid.runs()
    if done := sum(outcome(run).state != "missing" for run in runs):
        console.print(f"{done} of {len(runs)} runs are there already", highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task(f"{len(runs)} runs", total=sum(run.recipe.epochs for run in runs))
        settings = Settings(config.data_root, config.accelerator)
        return train_all(runs, config.processes, settings, lambda: progress.update(bar, completed=epochs_done(runs)))


def complaints(grid: Grid, ended: Mapping[Path, Outcome], after_divergence: str = "") -> list[str]:
    """Return a sentence for every run that did not finish: it diverged, ended with an error, or is not there.

    Args:
        grid: The runs.
        ended: How they did, by folder.
        after_divergence: What can be done about a run that diverged.
    """
    sentences = []
    for run in grid.runs():
        found = ended.get(run.folder)
        if found is not None and not found.finished:
            log = f" (log: {run.log})" if run.log.exists() else ""
            place = run.folder.relative_to(grid.root)
            advice = after_divergence if found.state == "diverged" else ""
            sentences.append(f"{place} {found.state}: {found.message or 'it has no result'}{advice}{log}")
    return sentences


def stopped(grid: Grid, number: int) -> int:
    """Say what a signal left, and return the exit status."""
    left = f"{grid.root} keeps what is done, and the same command goes on from there"
    print(f"\ncalibnorm: stopped by {name_of(number)}; {left}", file=sys.stderr)
    return 128 + number
