"""Runs from anywhere, side by side: the grid that they make, and what is said of it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from calibnorm.errors import UsageError
from calibnorm.lab.experiments.compare import Comparison
from calibnorm.lab.experiments.config import NOT_OVERRIDDEN, CompareConfig, data_words
from calibnorm.lab.experiments.grid import Cell, Grid, Run, condition_name
from calibnorm.lab.experiments.single import train_command
from calibnorm.lab.naming import slug
from calibnorm.lab.training.folder import read_recipe
from calibnorm.report.document import Command, Section

Place = tuple[str, str, int]
"""Row, column and seed."""


@dataclass(frozen=True)
class Gathered(Grid):
    """A grid whose runs lie where they lie.

    Args:
        folders: Of the runs that there are.
    """

    folders: Mapping[Place, Path] = field(default_factory=dict)

    def run(self, cell: Cell, seed: int) -> Run:
        """Return the run of a cell and a seed; the folder of one that there is not is that of no run."""
        folder = self.folders.get((cell.row, cell.column, seed), self.root / cell.place / f"seed{seed}")
        return Run(replace(cell.recipe, seed=seed), folder)


def gather(folders: Sequence[Path]) -> Gathered:
    """Return the grid of runs: their conditions by their norms, and whatever else differs, by seeds.

    Args:
        folders: Of the runs.

    Raises:
        UsageError: They have learned different things, or two are of the same settings and seed.
    """
    runs = {folder.resolve(): recipe for folder in folders if (recipe := read_recipe(folder)) is not None}
    first_folder, first = next(iter(runs.items()))
    for folder, recipe in runs.items():
        if recipe.task != first.task:
            reason = f"is a run of {recipe.task}, and {first_folder} of {first.task}; compare runs of one task"
            raise UsageError(f"{folder}: {reason}")
    varying = different([recipe.to_dict() for recipe in runs.values()])
    cells: dict[tuple[str, str], Cell] = {}
    found: dict[Place, Path] = {}
    for folder, recipe in runs.items():
        row = condition_name(recipe.noise)
        column = ", ".join([recipe.norm, *(f"{name} {vars(recipe)[name]}" for name in varying)])
        cells.setdefault((row, column), Cell(row, column, recipe, Path(slug(row), slug(column))))
        other = found.setdefault((row, column, recipe.seed), folder)
        if other != folder:
            raise UsageError(f"{folder}: has the settings and the seed of {other}; name one of them")
    columns = list(dict.fromkeys(column for _, column in cells))
    baseline = next((column for column in columns if column.partition(",")[0] == "bn"), columns[0])
    with_it = [row for row, column in cells if column == baseline]
    seeds = sorted({seed for _, _, seed in found})
    order = sorted(cells.values(), key=lambda cell: (cell.row != "clean", cell.row))
    root = Path(os.path.commonpath(runs))
    return Gathered(root, order, seeds, dict.fromkeys(with_it, baseline), found)


def different(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the settings that differ, besides those that every grid varies.

    >>> different([{"epochs": 1, "seed": 0}, {"epochs": 2, "seed": 1}])
    ['epochs']
    """
    names = [name for name in settings[0] if name not in NOT_OVERRIDDEN]
    return [name for name in names if any(each[name] != settings[0][name] for each in settings)]


@dataclass(frozen=True, kw_only=True)
class SideBySide(Comparison):
    """What is said of gathered runs.

    Args:
        places: What was named.
    """

    grid: Gathered
    places: Sequence[Path]

    @property
    def title(self) -> str:
        """How many runs of what."""
        return f"{len(self.grid.folders)} runs side by side: {', '.join(self.grid.columns())}"

    def how(self) -> str:
        """Return how the runs were trained, each column by itself where that differs."""
        names = different([cell.recipe.to_dict() for cell in self.grid.cells])
        if not names:
            return super().how()
        return f"The runs differ in {' and '.join(names)}, as their names say. The first is {super().how()}"

    def more_sections(self) -> list[Section]:
        """Return the differences, and the commands that train the runs."""
        recipes = [cell.recipe for cell in self.grid.cells]
        commands = dict.fromkeys(train_command(recipe, self.config.data_root) for recipe in recipes)
        lines = Command("\n".join(filter(None, commands)))
        trained = Section("The commands that train the runs of the first seed", [lines], on="file", folded=True)
        return [*super().more_sections(), trained]

    def command_line(self) -> str:
        """Return the command."""
        return shlex.join(["calibnorm", "report", *map(str, self.places), *data_words(self.config.data_root)])


def side_by_side(grid: Gathered, data_root: Path, **what: Any) -> SideBySide:
    """Return what is said of a grid, with the settings of a command that it could have come from."""
    config = CompareConfig(recipe="", norms=tuple(grid.columns()), seeds=len(grid.seeds), data_root=data_root)
    return SideBySide(grid=grid, config=config, recipe=grid.cells[0].recipe, **what)
