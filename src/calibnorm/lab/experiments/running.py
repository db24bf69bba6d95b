"""A grid from its checks to its report: what `calibnorm compare` and `calibnorm table` have in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from rich.console import Console

from calibnorm.errors import Stopped
from calibnorm.lab import data
from calibnorm.lab.experiments.checks import check
from calibnorm.lab.experiments.config import Common
from calibnorm.lab.experiments.grid import Grid, write_note
from calibnorm.lab.experiments.progress import complaints, stopped, train_grid
from calibnorm.lab.experiments.summary import Line, summarize


class Reporting(Protocol):
    """What a command says of its runs."""

    def write(self) -> None:
        """Write tables, pictures and the report into the grid's folder."""

    def show(self, console: Console) -> None:
        """Print the tables, and where the rest is."""


def carry_out(
    grid: Grid,
    config: Common,
    note: dict[str, Any],
    report: Callable[[Sequence[Line], Sequence[str], float], Reporting],
    console: Console | None = None,
    warnings: Iterable[str] = (),
) -> int:
    """Check a grid, train what is missing of it, print the report and write it.

    Args:
        grid: The runs, compared with what their folder holds.
        config: How and where they are trained.
        note: What is in the folder, for the next command that is given it.
        report: Of a line for every cell, a sentence for every run that did not finish, and the seconds that it took.
        console: Where to print; standard output by default.
        warnings: Sentences to print before anything is trained.

    Returns:
        The exit status: 0; 1 where runs failed or are missing, 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        UsageError: What the check refuses; nothing has been trained or written then.
    """
    console, start = console or Console(), time.perf_counter()
    with data.remembered():
        check((cell.recipe for cell in grid.cells), config.data_root, config.accelerator)
    for sentence in warnings:
        console.print(sentence, style="yellow", highlight=False)
    write_note(grid.root, note)
    try:
        failed = train_grid(grid, config, console)
    except Stopped as stop:
        return stopped(grid, stop.number)
    unfinished = complaints(grid, failed)
    made = report(summarize(grid, failed), unfinished, time.perf_counter() - start)
    made.write()
    made.show(console)
    return 1 if unfinished else 0
