"""`calibnorm compare`: norms x conditions x seeds of one recipe."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from calibnorm.errors import Setting, UsageError, as_option, called
from calibnorm.lab import data, models, recipes
from calibnorm.lab.experiments import plots, texts
from calibnorm.lab.experiments.checks import check
from calibnorm.lab.experiments.config import NOT_OVERRIDDEN, CompareConfig, data_words
from calibnorm.lab.experiments.experiment import carry_out
from calibnorm.lab.experiments.grid import (
    NOTE,
    Cell,
    Grid,
    changed_sources,
    check_folder,
    read_note,
    refuse_changes,
)
from calibnorm.lab.experiments.report import Report
from calibnorm.lab.experiments.statistics import Sample
from calibnorm.lab.naming import check_name, slug
from calibnorm.lab.recipes import Recipe
from calibnorm.report import pictures
from calibnorm.report.document import Bullets, Column, Paragraph, Picture, Section, Table

COMMAND = CompareConfig.command


def run(config: CompareConfig, console: Console | None = None, report: type[Comparison] | None = None) -> int:
    """Train what is missing, print the tables and write the report.

    Args:
        config: The settings.
        console: Where to print; standard output by default.
        report: What is said of it; `Comparison` by default.

    Returns:
        The exit status: 0; 1 where runs failed or are missing, 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        UsageError: A setting cannot be used, or the folder holds other runs; nothing has been trained then.
    """
    default = recipes.recipe(config.recipe)
    if others := config.override.keys() - {field.name for field in fields(default)}:
        raise UsageError(Setting(min(others)), f"is no setting of {config.recipe}")
    recipe = replace(default, **config.override)
    with called(norm="norms"):
        grid = plan(config, recipe)
        recipes.refuse_without_effect([cell.recipe for cell in grid.cells], default, config.override)
        with data.remembered():
            check(grid.runs(), config.data_root, config.accelerator)
    console = console or Console()
    for sentence in changed_sources(run.folder for run in grid.runs()):
        console.print(sentence, style="yellow", highlight=False, soft_wrap=True)
    note = {"command": config.command, "recipe": config.recipe, "settings": shared(recipe)}
    note["baseline"] = next(iter(grid.baseline.values()))
    tell = partial(report or Comparison, grid, config=config, recipe=recipe)
    return carry_out(grid, config, note, tell, console)


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
        raise UsageError(Setting("norms", config.norms), f"{twice[0]} is there twice; name each once")
    named: dict[str | None, str] = {None: norms[0]}
    named |= {text: norm for norm, typed in zip(norms, config.norms, strict=True) for text in (norm, typed)}
    if config.baseline not in named:
        raise UsageError(Setting("baseline", config.baseline), "choose one of ", Setting("norms", tuple(norms)))
    root = config.out / check_name(config.name or config.recipe)
    cells = [
        Cell(condition, norm, replace(of, norm=norm), Path(slug(condition), slug(norm)))
        for condition, of in config.rows(recipe)
        for norm in norms
    ]
    grid = Grid(root, cells, range(config.seeds), {cell.row: named[config.baseline] for cell in cells})
    if (note := read_note(root, config.command)) is not None:  # refused also where none of its runs is asked for
        before = shared(Recipe.from_dict(note.get("settings"), root / NOTE))
        refuse_changes(before, shared(recipe), f"{root} was begun", "--name")
    check_folder(grid)
    return grid


def shared(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that all runs of a comparison have in common."""
    return {key: value for key, value in recipe.to_dict().items() if key not in NOT_OVERRIDDEN}


@dataclass(frozen=True, kw_only=True)
class Comparison(Report):
    """What is said of a comparison.

    Args:
        config: The settings of the command.
        recipe: What all runs share.
    """

    config: CompareConfig
    recipe: Recipe

    @property
    def baseline(self) -> str:
        """The norm that the others are compared with."""
        return next(iter(self.grid.baseline.values()))

    @property
    def title(self) -> str:
        """The comparison's name and its norms."""
        return f"{self.grid.root.name}: {', '.join(self.grid.columns())}"

    def findings(self) -> list[Section]:
        """Return the table of all conditions, and what it says; a screen has fewer columns, as it may be narrow."""
        digits, minus = self.measure.digits, f"minus {self.baseline}"
        columns: list[str | Column] = [
            "condition",
            "norm",
            self.measure.column,
            Column("95 % interval", on="file"),
            Column(minus, on="file"),
            Column(minus, on="screen"),
            Column("better in", on="file"),
            Column("failed", on="file"),
            Column("failed", on="screen"),
            "each seed",
        ]
        rows = [
            [
                line.cell.row,
                line.cell.column,
                texts.average(line),
                texts.between(line.own.interval(), digits=digits),
                texts.difference(line),
                texts.difference(line, least=3),
                texts.wins(line),
                texts.failures(line),
                texts.of_runs(line.failed, line),
                texts.every_seed(line),
            ]
            for line in self.lines
        ]
        how = Paragraph(self.how())
        verdicts = [self.verdict(row) for row in self.grid.rows]
        table = Table(columns, rows, left=2, split=True)
        # Whoever opens a file begins above, and whoever sees a terminal begins below.
        return [Section("", [Bullets(verdicts, on="file"), how, table, Bullets(verdicts, on="screen")])]

    def more_sections(self) -> list[Section]:
        """Return every difference from the baseline, drawn."""
        of = [line for line in self.lines if line.against is not None and line.against.values]
        if not of:
            return []
        one_row = len(self.grid.rows) == 1
        names = [line.cell.column if one_row else f"{line.cell.row}: {line.cell.column}" for line in of]
        differences = {name: plots.seeds(line.against or Sample({})) for name, line in zip(names, of, strict=True)}
        measure = self.measure
        better = "more is better" if measure.higher_is_better else "less is better"
        unit = {"%": "points, ", "": ""}.get(measure.unit, f"{measure.unit}, ")
        label = f"difference in {measure.label} ({unit}{better})"
        dots = Paragraph("Small dots are seeds, large ones their mean, with the 95 % interval from three seeds on.")
        shows = f"Differences in {measure.label} from {self.baseline}, paired by seed"
        picture = Picture("differences.png", shows, partial(pictures.differences, differences, label))
        return [Section(f"Differences from {self.baseline}", [dots, picture], on="file")]

    def how(self) -> str:
        """Return how the runs were trained."""
        return f"{self.recipe.in_words()} {self.config.seeds} seed{'s' if self.config.seeds > 1 else ''}."

    def verdict(self, row: str) -> str:
        """Return in a sentence which differences are larger than what the seeds leave open."""
        intervals = [(line, line.against.interval()) for line in self.of(row) if line.against is not None]
        if not intervals:
            return f"{row}: one norm alone, so nothing is compared."
        if all(interval is None for _, interval in intervals):
            return f"{row}: fewer than two seeds that both norms finished, so no difference can be told from chance."
        clear = [
            f"{line.cell.column} {texts.difference(line)}"
            for line, interval in intervals
            if interval is not None and not interval.holds(0)
        ]
        if clear:
            of = f"{'points of ' if self.measure.unit == '%' else ''}{self.measure.label}"
            found = f"differences from {self.baseline} in {of} whose 95 % interval leaves out 0"
            return f"{row}: {found}: {'; '.join(clear)}."
        return f"{row}: no difference from {self.baseline} whose 95 % interval leaves out 0."

    def limits(self) -> Section:
        """Return what the numbers mean and what they leave open."""
        measure = self.measure
        compared = sum(line.against is not None and bool(line.against.values) for line in self.lines)
        looked_at = (
            f"{compared} difference{'s are' if compared != 1 else ' is'} looked at: of twenty that are truly 0, one "
            "interval is expected to leave 0 out. "
        )
        less = "" if measure.higher_is_better else " Less is better: a negative difference is a gain."
        at_chance = measure.chance_in_words
        sentences = [
            f"{texts.beginning(measure.plural)} are those after the last epoch on the test images, mean ± sample "
            f"standard deviation over seeds; runs that failed are not in them.{less}",
            "Differences are paired by seed: runs of a seed share initial weights and batches. Intervals are 95 %, "
            "Student's t over seeds. They assume that the differences are independent and roughly normal, which fails "
            "where some runs train and others stay at chance. Look at each seed there.",
            f"{looked_at if compared else ''}All seeds share one set of test images, and no interval holds "
            "the chance that lies in its choice.",
            (f'"At chance" is a finished run of {at_chance}; "failed" one' if at_chance else '"Failed" is a run')
            + " whose loss stopped being finite, or whose process ended with an error.",
        ]
        return Section("How to read it", [Bullets(sentences)], on="file")

    def command_line(self) -> str:
        """Return a command that makes this comparison."""
        c, columns = self.config, self.grid.columns()
        words = [c.command, c.recipe, "--norms", *map(shlex.quote, columns), *c.words()]
        words += [f"--load {shlex.join(c.load)}"] if c.load else []
        words += [f"--baseline {shlex.quote(self.baseline)}"] if self.baseline != columns[0] else []
        words += [f"--noise {text}" for text in c.conditions if c.noise or c.conditions != ("none",)]
        words += map(shlex.quote, data_words(c.data_root))
        words += [f"--seeds {c.seeds}"] + ([f"--name {c.name}"] if c.name else [])
        words += [as_option(Setting(name, value)) for name, value in c.override.items()]
        return " ".join(words)
