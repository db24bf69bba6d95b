"""`calibnorm table` from start to end."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from rich.console import Console

from calibnorm.errors import UsageError, as_option
from calibnorm.lab import data
from calibnorm.lab.experiments.checks import check
from calibnorm.lab.experiments.config import TableConfig
from calibnorm.lab.experiments.experiment import carry_out
from calibnorm.lab.experiments.grid import Cell, Grid, check_folder, read_note
from calibnorm.lab.experiments.tables import scales
from calibnorm.lab.experiments.tables.definitions import TABLES, Table
from calibnorm.lab.experiments.tables.report import TableReport, absent
from calibnorm.lab.naming import slug

COMMAND = "calibnorm table"


def run(config: TableConfig, console: Console | None = None) -> int:
    """Train what is missing of a table, print it and write its report.

    Args:
        config: The settings.
        console: Where to print; standard output by default.

    Returns:
        The exit status: 0; 1 where runs failed or are missing, 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        UsageError: Data are missing, or the folder cannot be used; nothing has been trained then.
    """
    table, console = TABLES[config.table], console or Console()
    with data.remembered():
        grid, left_out = plan(table, config)
        check(grid.runs(), config.data_root, config.accelerator)
    for sentence in absent(left_out):
        console.print(sentence, style="yellow", highlight=False)
    note = {"command": COMMAND, "table": table.name, "scale": config.scale}
    tell = partial(TableReport, grid, table=table, scale=config.scale, left_out=left_out, data_root=config.data_root)
    return carry_out(grid, config, note, tell, console)


def plan(table: Table, config: TableConfig) -> tuple[Grid, dict[str, str]]:
    """Return the grid of a table, and why rows are left out.

    That is where a data set that is mixed in is missing; at paper scale, that is refused by the check before training.

    Args:
        table: Which.
        config: The settings.

    Raises:
        UsageError: The folder holds something else, or runs of other settings.
    """
    recipes = [(entry, scales.recipe(table, entry, config.scale)) for entry in table.entries]
    others = {entry.row: entry.mix[0] for entry in table.entries if entry.mix is not None and config.scale != "paper"}
    reasons = {name: why for name in sorted({*others.values()}) if (why := missing(name, config.data_root))}
    left_out = {row: reasons[name] for row, name in others.items() if name in reasons}
    cells = [
        Cell(entry.row, entry.column, recipe, Path(slug(entry.row), slug(entry.column)))
        for entry, recipe in recipes
        if entry.row not in left_out
    ]
    seeds = config.seeds or (scales.PAPER_SEEDS if config.scale == "paper" else scales.SCALES[config.scale].seeds)
    rows = {cell.row for cell in cells if cell.column == table.baseline}
    grid = Grid(config.out / f"{table.name}-{config.scale}", cells, range(seeds), dict.fromkeys(rows, table.baseline))
    read_note(grid.root, COMMAND)
    check_folder(grid)
    return grid, left_out


def missing(name: str, data_root: Path) -> str:
    """Return why a data set cannot be read, or nothing."""
    try:
        data.load(name, data_root, train_images=None)
    except UsageError as error:
        return error.words(as_option)
    return ""
