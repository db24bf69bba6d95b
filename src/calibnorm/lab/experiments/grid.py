"""A grid of runs: rows (conditions, architectures) x columns (norms) x seeds, and what its folder already holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from calibnorm.errors import Setting, UsageError, written
from calibnorm.lab.recipes import Noise, Recipe, parse_noise
from calibnorm.lab.training.folder import changed_sources as folder_sources
from calibnorm.lab.training.folder import read_recipe
from calibnorm.report.files import read_json, refuse_file, write_json

NOTE = "grid.json"


@dataclass(frozen=True)
class Cell:
    """One place of the grid; with a seed, one run.

    Args:
        row: What it is compared under, as pictures and tables call it, such as "clean".
        column: What is compared, such as "iebn".
        recipe: How its runs are trained; the seed in it is replaced.
        place: The folder of its runs, relative to that of the whole grid.
    """

    row: str
    column: str
    recipe: Recipe
    place: Path


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        recipe: With its seed.
        folder: For the run; the lock, the log and the note of a failure lie beside it.
    """

    recipe: Recipe
    folder: Path

    @property
    def lock(self) -> Path:
        """The file whose lock the process holds that trains the run."""
        return self.folder.with_name(f"{self.folder.name}.lock")

    @property
    def log(self) -> Path:
        """What the run printed."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def failure(self) -> Path:
        """The note that the run diverged, which it would again."""
        return self.folder.with_name(f"{self.folder.name}.failed.json")


@dataclass(frozen=True)
class Grid:
    """All cells and seeds.

    Cells of equal recipes are one: a table that shows the same network in two places trains it once.

    Args:
        root: The folder of everything.
        cells: By row and then column; no two with the same row and column.
        seeds: Each gives all cells the same initial weights and batches.
        baseline: By row, the column that the others are compared with; rows without one compare nothing.
    """

    root: Path
    cells: Sequence[Cell]
    seeds: Sequence[int]
    baseline: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make sure that different cells have different folders."""
        names = [(cell.row, cell.column) for cell in self.cells]
        assert len(set(names)) == len(names)
        places: dict[str, Recipe] = {}
        for cell in self.cells:
            # Lower case: a file system may not tell A from a.
            if replace(cell.recipe, seed=0) != replace(places.setdefault(str(cell.place).lower(), cell.recipe), seed=0):
                raise UsageError(f"{cell.row}, {cell.column}: two different runs would share the folder {cell.place}")

    @property
    def rows(self) -> list[str]:
        """The rows' names in order."""
        return list(dict.fromkeys(cell.row for cell in self.cells))

    def columns(self, row: str | None = None) -> list[str]:
        """Return the columns' names in order, of one row or of all."""
        return list(dict.fromkeys(cell.column for cell in self.cells if row in (None, cell.row)))

    def run(self, cell: Cell, seed: int) -> Run:
        """Return the run of a cell and a seed: that of the first cell with an equal recipe."""
        first = next(c for c in self.cells if replace(c.recipe, seed=0) == replace(cell.recipe, seed=0))
        return Run(replace(cell.recipe, seed=seed), self.root / first.place / f"seed{seed}")

    def runs(self) -> list[Run]:
        """Return every training once: seed by seed, so that an interrupted grid is balanced."""
        found = {run.folder: run for seed in self.seeds for run in (self.run(cell, seed) for cell in self.cells)}
        return list(found.values())


def conditions(recipe: Recipe, noises: Sequence[str]) -> Iterator[tuple[str, Recipe]]:
    """Yield the name and the recipe of every condition.

    Args:
        recipe: What all have in common.
        noises: "none", or the two numbers N_a,N_b of a constant noise attack.

    Raises:
        UsageError: A text is neither, or two are equal.
    """
    seen: set[str] = set()
    for text in noises:
        noise = parse_noise(text)
        name = condition_name(noise)
        if name in seen:
            raise UsageError(Setting("noise", text), "is there twice; name each once")
        seen.add(name)
        yield name, replace(recipe, noise=noise)


def condition_name(noise: Noise) -> str:
    """Return how tables and folders call a condition.

    >>> condition_name(None), condition_name((0.5, 0.2))
    ('clean', 'noise 0.5,0.2')
    """
    return "clean" if noise is None else "noise {:g},{:g}".format(*noise)


def check_folder(grid: Grid) -> None:
    """Compare the grid with the runs that its folder already holds.

    Raises:
        UsageError: A run there was trained with other settings; the text names the run and the first of them.
    """
    for run in grid.runs():
        if (before := read_recipe(run.folder)) is not None:
            refuse_changes(before.to_dict(), run.recipe.to_dict(), f"{run.folder} was trained", "folder")


def changed_sources(folders: Iterable[Path]) -> list[str]:
    """Return a sentence for every file of `--load` that has changed since runs were trained with it.

    Raises:
        UsageError: Such a file is missing here; the text says which.
    """
    found: dict[str, list[Path]] = {}
    for folder in folders:
        for path in folder_sources(folder):
            found.setdefault(path, []).append(folder)
    return [
        f"{path} has changed since it trained {len(of)} run{'s' if len(of) > 1 else ''}, such as {of[0]}; remove what "
        "is to be trained anew"
        for path, of in found.items()
    ]


def refuse_changes(before: dict[str, Any], now: dict[str, Any], what: str, other: str) -> None:
    """Refuse settings that differ from those of before.

    Args:
        before: What is in the folder.
        now: What is asked for.
        what: What was done with the settings of before.
        other: What can be chosen instead.

    Raises:
        UsageError: The first setting that differs.
    """
    for name, value in now.items():
        if value != before[name]:
            advice = f"choose another {other}, or remove that one"
            raise UsageError(Setting(name, value), f"{what} with {written(before[name])}; {advice}")


def read_note(root: Path, command: str) -> dict[str, Any] | None:
    """Return what a command noted in its folder; None for a folder that is missing or empty.

    Raises:
        UsageError: The folder holds what the command did not write.
    """
    out = Setting("out", root)
    refuse_file("out", root)
    try:
        names = [entry.name for entry in root.iterdir() if not entry.name.startswith(".")]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(out, f"is no folder that can be read ({error.strerror}); choose another") from error
    note = read_json(root / NOTE)
    if names and (note is None or note.get("command") != command):
        raise UsageError(out, f"holds what `{command}` did not write; choose another folder or name")
    return note


def write_note(root: Path, note: dict[str, Any]) -> None:
    """Make the folder of a grid, with a note of what is in it.

    Raises:
        UsageError: It cannot be written.
    """
    try:
        write_json(root / NOTE, note)
    except OSError as error:
        out = Setting("out", root)
        raise UsageError(out, f"cannot be written ({error.strerror}); choose another folder") from error
