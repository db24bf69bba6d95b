"""`calibnorm table` from start to end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from calibnorm.errors import UsageError
from calibnorm.lab import data
from calibnorm.lab.experiments.config import TableConfig
from calibnorm.lab.experiments.grid import Cell, Grid, check_folder, read_note
from calibnorm.lab.experiments.running import carry_out
from calibnorm.lab.experiments.summary import Line
from calibnorm.lab.experiments.tables import definitions, scales
from calibnorm.lab.experiments.tables.definitions import Table
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
    table = definitions.table(config.table)
    grid, left_out = plan(table, config)
    note = {"command": COMMAND, "table": table.name, "scale": config.scale}

    def report(lines: Sequence[Line], complaints: Sequence[str], seconds: float) -> TableReport:
        return TableReport(table, config.scale, grid, lines, left_out, complaints, seconds)

    return carry_out(grid, config, note, report, console, warnings=absent(left_out))


def plan(table: Table, config: TableConfig) -> tuple[Grid, dict[str, str]]:
    """Return the grid of a table, and why rows are left out.

    That is where a data set that is mixed in is missing; at paper scale, that is refused by the check before training.

    Args:
        table: Which.
        config: The settings.

    Raises:
        UsageError: The folder holds something else, or runs of other settings.
    """
    cells: list[Cell] = []
    left_out: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for entry in table.entries:
        recipe = scales.recipe(table, entry, config.scale)
        if config.scale != "paper" and recipe.mix is not None:
            if recipe.mix not in reasons:
                reasons[recipe.mix] = missing(recipe.mix, config.data_root)
            if reasons[recipe.mix]:
                left_out[entry.row] = reasons[recipe.mix]
                continue
        cells.append(Cell(entry.row, entry.column, recipe, Path(slug(entry.row), slug(entry.column))))
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
        return str(error)
    return ""
