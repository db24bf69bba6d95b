"""`calibnorm compare`: norms x conditions x seeds of one recipe."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from calibnorm.errors import Setting, UsageError, as_option, called
from calibnorm.lab import models, recipes
from calibnorm.lab.experiments import plots, texts
from calibnorm.lab.experiments.config import NOT_OVERRIDDEN, CompareConfig
from calibnorm.lab.experiments.grid import NOTE, Cell, Grid, check_folder, conditions, read_note, said
from calibnorm.lab.experiments.origins import made_with
from calibnorm.lab.experiments.running import carry_out
from calibnorm.lab.experiments.summary import Line, write_results, write_summary
from calibnorm.lab.naming import check_name, slug
from calibnorm.lab.recipes import Recipe
from calibnorm.report.files import write_whole

COMMAND = "calibnorm compare"
HEADER = ("norm", "accuracy (%)", "95 % interval", "minus {}", "better in", "failed", "each seed")


def run(config: CompareConfig, console: Console | None = None) -> int:
    """Train what is missing, print the tables and write the report.

    Args:
        config: The settings.
        console: Where to print; standard output by default.

    Returns:
        The exit status: 0; 1 where runs failed or are missing, 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        UsageError: A setting cannot be used, or the folder holds other runs; nothing has been trained then.
    """
    recipe = replace(recipes.recipe(config.recipe), **config.override)
    with called(norm="norms"):
        grid = plan(config, recipe)
        note = {"command": COMMAND, "recipe": config.recipe, "settings": shared(recipe)}
        return carry_out(grid, config, note, partial(Report, config, recipe, grid), console)


def plan(config: CompareConfig, recipe: Recipe) -> Grid:
    """Return the grid.

    Args:
        config: The settings of the command.
        recipe: What all runs share.

    Raises:
        UsageError: A norm, noise or name cannot be used, or the folder holds runs of other settings.
    """
    norms = [str(models.parse_norm(text)) for text in config.norms]
    if twice := [norm for number, norm in enumerate(norms) if norm in norms[:number]]:
        raise UsageError(f"--norms {' '.join(config.norms)}: {twice[0]} is there twice; name each once")
    named: dict[str | None, str] = {None: norms[0]}
    named |= {text: norm for norm, typed in zip(norms, config.norms, strict=True) for text in (norm, typed)}
    if config.baseline not in named:
        raise UsageError(f"--baseline {config.baseline}: choose one of --norms {' '.join(norms)}")
    baseline = named[config.baseline]
    root = config.out / check_name(config.name or config.recipe)
    cells = [
        Cell(condition, norm, replace(of, norm=norm), Path(slug(condition), slug(norm)))
        for condition, of in conditions(recipe, config.noise or ("none",))
        for norm in norms
    ]
    grid = Grid(root, cells, range(config.seeds), {cell.row: baseline for cell in cells})
    check_root(root, recipe)
    check_folder(grid)
    return grid


def shared(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that all runs of a comparison have in common."""
    return {key: value for key, value in recipe.to_dict().items() if key not in NOT_OVERRIDDEN}


def check_root(root: Path, recipe: Recipe) -> None:
    """Refuse a folder of something else, or of a comparison with other settings, though none of its runs be asked for.

    Raises:
        UsageError: It is one; the text names the setting.
    """
    note = read_note(root, COMMAND)
    if note is None:
        return
    before, now = shared(Recipe.from_dict(note["settings"], root / NOTE)), shared(recipe)
    for key, value in now.items():
        if value != before[key]:
            raise UsageError(
                Setting(key, value),
                f"{root} was begun with {said(before[key])}; choose another ",
                Setting("name"),
                ", or remove that folder",
            )


@dataclass(frozen=True)
class Report:
    """Everything that the report says.

    Args:
        config: The settings of the command.
        recipe: What all runs share.
        grid: The runs.
        lines: A line for every cell.
        complaints: A sentence for every run that did not finish.
        seconds: Wall time of this command.
    """

    config: CompareConfig
    recipe: Recipe
    grid: Grid
    lines: Sequence[Line]
    complaints: Sequence[str]
    seconds: float

    @property
    def baseline(self) -> str:
        """The norm that the others are compared with."""
        return self.grid.baseline[self.grid.rows[0]]

    @property
    def header(self) -> list[str]:
        """The table's columns."""
        return [name.format(self.baseline) for name in HEADER]

    def of(self, row: str) -> list[Line]:
        """Return the lines of a condition."""
        return [line for line in self.lines if line.cell.row == row]

    def cells(self, line: Line) -> list[str]:
        """Return a line of the table."""
        return [
            line.cell.column,
            texts.spread(line.mean, line.std),
            texts.between(line.interval),
            texts.difference(line),
            texts.wins(line),
            texts.failures(line),
            texts.each(line),
        ]

    @property
    def short_header(self) -> list[str]:
        """The columns of the table on the screen, which may be narrow."""
        return ["norm", "accuracy (%)", f"minus {self.baseline}", "failed", "each seed"]

    def short_cells(self, line: Line) -> list[str]:
        """Return a line of the table on the screen."""
        return [
            line.cell.column,
            texts.spread(line.mean, line.std),
            texts.difference(line, least=3),
            f"{line.failed} of {len(line.outcomes)}" if line.failed else "0",
            texts.each(line),
        ]

    def verdict(self, row: str) -> str:
        """Return in a sentence which differences are larger than what the seeds leave open."""
        lines = [line for line in self.of(row) if line.against is not None]
        if not lines:
            return f"{row}: one norm alone, so nothing is compared."
        known = [(line, line.against.interval) for line in lines if line.against is not None]
        if all(interval is None for _, interval in known):
            return f"{row}: fewer than two seeds that both norms finished, so no difference can be told from chance."
        clear = [
            f"{line.cell.column} {texts.difference(line)}"
            for line, interval in known
            if interval is not None and 0 not in interval
        ]
        if clear:
            return f"{row}: minus {self.baseline}, with an interval that leaves out 0: {'; '.join(clear)}."
        return f"{row}: no difference from {self.baseline} whose 95 % interval leaves out 0."

    def limits(self) -> list[str]:
        """Return what the numbers mean and what they leave open."""
        compared = sum(line.against is not None and bool(line.against.differences) for line in self.lines)
        looked_at = (
            f"{compared} difference{'s are' if compared != 1 else ' is'} looked at: of twenty that are truly 0, one "
            "interval is expected to leave 0 out. "
        )
        return [
            "Accuracies are those after the last epoch on the test images, mean ± sample standard deviation over "
            "seeds; runs that failed are not in them.",
            "Differences are paired by seed: runs of a seed share initial weights and batches. Intervals are 95 %, "
            "Student's t over seeds: they assume that the differences are independent and roughly normal, which fails "
            "where some runs train and others stay at chance. Look at each seed there.",
            f"{looked_at if compared else ''}All seeds share one set of test images, whose own chance is in no "
            "interval.",
            '"At chance" is a finished run of at most twice the accuracy of guessing; "failed" one whose loss stopped '
            "being finite, or whose process ended with an error.",
        ]

    def write(self) -> None:
        """Write tables, pictures and the report into the comparison's folder."""
        root = self.grid.root
        write_results(root / "results.csv", self.grid, self.lines)
        write_summary(root / "summary.csv", self.lines)
        drawn = plots.draw_curves(self.grid, root / "curves.png")
        plots.draw_finals(self.grid, self.lines, root / "accuracies.png")
        write_whole(root / "report.md", self.markdown(drawn).encode())

    def markdown(self, curves: bool = True) -> str:
        """Return the report as Markdown, with the pictures that lie beside it."""
        rows = [[line.cell.row, *self.cells(line)] for line in self.lines]
        parts = [
            f"# {self.grid.root.name}: {', '.join(self.grid.columns())}",
            f"{self.recipe.in_words()} {self.config.seeds} seed{'s' if self.config.seeds > 1 else ''}.",
            texts.markdown(["condition", *self.header], rows, left=2),
            texts.bullets(map(self.verdict, self.grid.rows)),
        ]
        if self.complaints:
            parts += ["## Runs that failed or are missing", texts.bullets(self.complaints)]
        parts += [
            "## How to read it",
            texts.bullets(self.limits()),
            "## Every run",
            "Dots are runs, thin lines connect those of a seed; beside them the mean and, from three seeds on, "
            "its 95 % interval.",
            "![Test accuracy of every run](accuracies.png)",
        ]
        if curves:
            parts += [
                "## Learning curves",
                "Lines are means over seeds, bands reach from the least to the greatest.",
                "![Test error and training loss over epochs](curves.png)",
            ]
        parts += ["## Made with", made_with(self.command_line(), self.seconds, self.grid)]
        return "\n\n".join(parts) + "\n"

    def command_line(self) -> str:
        """Return a command that makes this comparison."""
        c = self.config
        columns = self.grid.columns()
        words = [COMMAND, c.recipe, "--norms", *map(shlex.quote, columns)]
        words += [f"--baseline {shlex.quote(self.baseline)}"] if self.baseline != columns[0] else []
        words += [f"--noise {text}" for text in c.noise]
        words += [f"--seeds {c.seeds}"] + ([f"--name {c.name}"] if c.name else [])
        words += [f"{as_option(Setting(name))} {said(value)}" for name, value in c.override.items()]
        return " ".join(words)

    def show(self, console: Console) -> None:
        """Print the tables, what they mean, and where the rest is."""
        console.print(f"\n{self.recipe.in_words()}\n", highlight=False)
        for row in self.grid.rows:
            texts.show(console, row, self.short_header, map(self.short_cells, self.of(row)))
        for row in self.grid.rows:
            console.print(self.verdict(row), highlight=False)
        for complaint in self.complaints:
            console.print(complaint, style="red", highlight=False)
        console.print(
            f"\nReport and pictures: {self.grid.root / 'report.md'}   ({self.seconds:.0f} s)", highlight=False
        )
