"""`calibnorm inspect RUN`: one run, as a page in its folder."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path

from rich.console import Console

from calibnorm.errors import Setting, UsageError, as_option, written
from calibnorm.lab import tasks
from calibnorm.lab.experiments import calibration, layers, noise, texts
from calibnorm.lab.experiments.config import Common, InspectConfig, data_words
from calibnorm.lab.experiments.grid import Run, condition_name
from calibnorm.lab.experiments.origins import environments
from calibnorm.lab.experiments.outcomes import curve
from calibnorm.lab.recipes import RECIPES, Recipe
from calibnorm.lab.tasks import Tables
from calibnorm.lab.training.folder import CONFIG, RESULT, Result, read_recipe, read_result, read_timings
from calibnorm.lab.training.trained import trained
from calibnorm.report import pictures, screen
from calibnorm.report.document import Bullets, Command, Document, Facts, Paragraph, Picture, Section, Table
from calibnorm.report.environment import named
from calibnorm.report.writing import write

RUNS = f"*/*/seed*/{CONFIG}"
"""Where the runs of a comparison or a table lie."""
ONE = "This is the trained network."


def run(config: InspectConfig, console: Console | None = None) -> int:
    """Read a run, print what it came to, and write its page into its folder.

    Returns:
        The exit status, 0.

    Raises:
        UsageError: There is no finished run, its files are not whole, its images are missing, or the folder cannot be
            written.
    """
    console = console or Console()
    with console.status(
        "reading the trained network: its gates, and its batch noise"
    ):  # a minute or two; on a terminal
        said = SingleRun(config.folder, config.data_root, layer=config.layer).document()
    tell(said, config.folder, console)
    return 0


def tell(document: Document, folder: Path, console: Console, name: str = "report") -> None:
    """Write a document into a folder, print it, and say where its page is.

    Raises:
        UsageError: It cannot be written; it has been printed then.
    """
    try:
        page, *_ = write(document, folder, name)  # first, as whoever reads the output may leave
    except OSError as error:
        screen.show(document, console)
        raise UsageError(f"{folder}: cannot be written ({error.strerror}); make room, or choose another") from error
    screen.show(document, console)
    screen.say_where(console, page)


def finished_run(folder: Path) -> tuple[Recipe, Result]:
    """Return the settings and the result of a finished run.

    Raises:
        UsageError: The folder holds no run, or one that is not finished; the text says what to do.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: is no folder; name a run's, such as runs/digits-tiny/iebn-seed0")
    recipe = read_recipe(folder)
    if recipe is None:
        within = sorted(folder.glob(RUNS)) or sorted(folder.glob(f"*/{CONFIG}"))
        inside = f"one of its runs, such as {within[0].parent}, or: calibnorm report {folder}" if within else "a run's"
        raise UsageError(f"{folder}: is no run's folder, for it has no {CONFIG}; name {inside}")
    if (result := read_result(folder)) is None:
        done = len(curve(Run(recipe, folder)))
        reason = f"is not finished ({done} of {recipe.epochs} epochs, no {RESULT}); the command that began it goes on"
        raise UsageError(f"{folder}: {reason}")
    return recipe, result


def train_command(recipe: Recipe, data_root: Path = Common.data_root) -> str:
    """Return a command that trains a recipe, "" where no recipe of its kind has a name.

    It is that of the named recipe from which the fewest settings differ.

    Args:
        recipe: The settings.
        data_root: Where the data sets are.

    >>> from dataclasses import replace
    >>> train_command(replace(RECIPES["digits-tiny"], norm="rbn", milestones=(), seed=2))
    'calibnorm train digits-tiny --norm rbn --seed 2'
    """

    def changed(name: str) -> list[Setting]:
        before, vain = vars(RECIPES[name]), recipe.without_effect()
        changes = {key: value for key, value in vars(recipe).items() if value != before[key]}
        return [Setting(key, value) for key, value in changes.items() if key not in vain or value in ((), None)]

    if not (alike := [name for name, other in RECIPES.items() if type(other) is type(recipe)]):
        return ""
    name = min(alike, key=lambda each: len(changed(each)))
    words = [word for setting in changed(name) for word in as_option(setting).split()]
    return shlex.join(["calibnorm", "train", name, *words, *data_words(data_root)])


@dataclass(frozen=True)
class SingleRun:
    """What is said of a run.

    Args:
        folder: The run's.
        data_root: Where data sets lie.
        read_network: Whether its trained network is read: what it has learned, and on the test images its gates and its
            batch noise.
        layer: Whose channels and features are shown; that whose gate varies most by default.
    """

    folder: Path
    data_root: Path
    read_network: bool = True
    layer: str | None = None

    @cached_property
    def outcome(self) -> tuple[Recipe, Result]:
        """Its settings and its result."""
        return finished_run(self.folder)

    def document(self) -> Document:
        """Return the report.

        Raises:
            UsageError: There is no finished run, its files are not whole, or its images are missing.
        """
        recipe, _ = self.outcome
        settings = {name.replace("_", " "): written(value) for name, value in recipe.to_dict().items()}
        machine, condition = environments(self.folder), condition_name(recipe.noise)
        network, tables = self.network() if self.read_network else ([], {})
        return Document(
            f"{recipe.norm} in {recipe.model} on {recipe.data}, {condition}, seed {recipe.seed}",
            [
                Section("", [self.result(), Paragraph(recipe.in_words())]),
                self.curves(),
                *network,
                *noise.over_training([(condition, recipe.norm, Run(recipe, self.folder))]),
                Section("Every epoch", [Table.of(curve(Run(recipe, self.folder)))], on="page", folded=True),
                Section(
                    "Time of a step, by epoch",
                    [Table.of([asdict(timing) for timing in read_timings(self.folder)])],
                    on="page",
                    folded=True,
                ),
                Section("The command that makes this", [Command(train_command(recipe, self.data_root))], on="file"),
                Section("Settings", [Facts(settings)], on="file", folded=True),
                Section("Made with", [Facts(named(each)) for each in machine], on="file", folded=True),
            ],
            tables,
        )

    def result(self) -> Facts:
        """Return what it came to."""
        recipe, result = self.outcome
        headline = tasks.of(recipe).headline
        best = headline.text(result.figures[f"best_{headline.name}"])
        return Facts(
            {
                headline.label: headline.text(result.figures[headline.name]),
                f"the best, epoch {result.best_epoch}": best,
                "epochs": f"{result.epochs}",
                "learnable numbers": f"{result.parameters:,}",
                "time": f"{result.seconds:.0f} s",
            },
            large=True,
        )

    def curves(self) -> Section:
        """Return its figures over the epochs: those of training and of the test together, by what they measure."""
        recipe, _ = self.outcome
        rows = curve(Run(recipe, self.folder))
        columns: dict[str, dict[str, dict[str, list[list[tuple[float, float]]]]]] = {}
        for measure in tasks.of(recipe).measures:
            of = measure.label.partition(" ")[0]
            axis = measure.label_with_unit.removeprefix(f"{of} ")
            name = {"train": "training"}.get(of, of)
            panel = columns.setdefault(axis, {}).setdefault(axis, {})
            panel[name] = [[(row["epoch"], row[measure.name]) for row in rows]]
        shows = f"{', '.join(axis.partition(' (')[0] for axis in columns)} over epochs, in training and in testing"
        picture = Picture("curves.png", texts.beginning(shows), partial(pictures.curves, columns))
        return Section("Learning curves", [picture] if rows else [], on="file")

    def network(self) -> tuple[list[Section], Tables]:
        """Return what its task says of its trained network, what that has learned, and its batch noise; and tables."""
        recipe, _ = self.outcome
        with trained(self.folder, self.data_root) as of:
            calibration.check(of.network, self.layer)  # before the test images are read, again and again
            which = of, condition_name(recipe.noise), recipe.norm
            rows, company = layers.read(*which), noise.read(*which)
            steps = calibration.sections(of, rows, self.layer)
            learned, tables = of.task.read(of.network, of.feeds, of.outputs)
        return [
            *learned,
            layers.section(rows, ONE),
            Section("What the gates look at", [Bullets(layers.follows(rows))]),
            layers.numbers(rows),
            *steps,
            *noise.sections(company, ONE),
        ], tables
