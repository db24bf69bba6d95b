"""`calibnorm report`: the page of runs, a comparison, a table or a bench, from the folders that they have left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from calibnorm.bench import results as bench
from calibnorm.bench.summary import report_of
from calibnorm.errors import Setting, UsageError, as_option
from calibnorm.lab import recipes
from calibnorm.lab.experiments import compare, layers, noise
from calibnorm.lab.experiments.config import CompareConfig, ReportConfig, TableConfig
from calibnorm.lab.experiments.experiment import complaints
from calibnorm.lab.experiments.gathered import Gathered, gather, side_by_side
from calibnorm.lab.experiments.grid import NOTE, Grid, condition_name
from calibnorm.lab.experiments.outcomes import outcomes
from calibnorm.lab.experiments.report import Report
from calibnorm.lab.experiments.single import RUNS, SingleRun, finished_run, tell
from calibnorm.lab.experiments.summary import summarize
from calibnorm.lab.experiments.tables import run as tables
from calibnorm.lab.experiments.tables.definitions import TABLES
from calibnorm.lab.experiments.tables.report import TableReport
from calibnorm.lab.naming import slug
from calibnorm.lab.recipes import RECIPES, Recipe
from calibnorm.lab.training.folder import CONFIG, RESULT, read_recipe
from calibnorm.report import screen
from calibnorm.report.document import Bullets, Paragraph, Section
from calibnorm.report.files import read_csv, read_json, refuse_file

WHAT = "name runs, a comparison's or a table's folder, or a bench's results"


def run(config: ReportConfig, console: Console | None = None) -> int:
    """Write the page of what was named, and print it.

    Returns:
        The exit status, 0.

    Raises:
        UsageError: Something that was named is none of these or holds nothing that is finished, or the page cannot be
            written.
    """
    console = console or Console()
    if not config.runs:
        raise UsageError(f"report: needs a word; {WHAT}, such as runs/compare/digits-tiny")
    out = config.out or Path("runs/report") / name_of(config.runs)
    refuse_file("out", out)
    for place in config.runs:
        if not place.exists():
            raise UsageError(f"{place}: is not there; {WHAT}")
    if benches := [place for place in config.runs if bench.found(place)]:
        return of_bench(benches[0], config, out, console)
    folders = {place: run_folders(place) for place in config.runs}
    if len(config.runs) == 1 and (config.runs[0] / CONFIG).exists():
        tell(SingleRun(config.runs[0], config.data_root, config.gates).document(), out, console)
        return 0
    report = reopened(config) or gathered(config, [run for of in folders.values() for run in of])
    networks = read_networks(report, config) if config.gates else []
    report = replace(report, found=[*networks, *noise.over_training(noise.of_grid(report.grid))])
    try:
        page, *_ = report.write(out)
    except OSError as error:
        raise UsageError(Setting("out", out), f"cannot be written ({error.strerror}); choose another folder") from error
    report.show(console)
    screen.say_where(console, page)
    return 0


def name_of(places: tuple[Path, ...]) -> str:
    """Return how the folder of a page is called.

    >>> name_of((Path("runs/compare/first"),)), name_of((Path("a/clean/bn/seed0"), Path("b")))
    ('first', 'clean-bn-seed0-and-1-more')
    """
    parts = places[0].resolve().with_suffix("").parts if places[0].suffix == ".json" else places[0].resolve().parts
    first = "-".join(parts[-3:] if parts[-1].startswith("seed") else parts[-1:])
    return slug(first if len(places) == 1 else f"{first}-and-{len(places) - 1}-more", "-")


def of_bench(place: Path, config: ReportConfig, out: Path, console: Console) -> int:
    """Write the page of every bench of a place."""
    if len(config.runs) > 1:
        other = next(each for each in config.runs if each != place)
        raise UsageError(f"{place}: holds a bench's results, which stand by themselves; name it without {other}")
    for path in bench.found(place):
        tell(report_of(bench.read(path)), out / path.stem, console)
    return 0


def run_folders(place: Path) -> list[Path]:
    """Return the folders of the runs that a place names: itself, or those of a comparison, a table or a recipe.

    Raises:
        UsageError: It holds none, or none that is finished.
    """
    if not place.is_dir():
        raise UsageError(f"{place}: is a file, and no bench's results; {WHAT}")
    if (place / CONFIG).exists():
        finished_run(place)  # refuses one that is not
        return [place]
    found = sorted(path.parent for pattern in (RUNS, f"*/{CONFIG}") for path in place.glob(pattern))
    if not found:
        inside = "is empty" if not any(place.iterdir()) else f"holds no run ({CONFIG}) and no bench's results"
        raise UsageError(f"{place}: {inside}; {WHAT}")
    if not any((folder / RESULT).exists() for folder in found):
        raise UsageError(f"{place}: none of its {len(found)} runs is finished; the command that began them goes on")
    return found


def reopened(config: ReportConfig) -> Report | None:
    """Return the report of the one comparison or table that was named; None for anything else."""
    if len(config.runs) > 1:
        return None
    folder = config.runs[0].resolve()
    note = read_json(folder / NOTE) or {}
    if note.get("command") == tables.COMMAND and note.get("table") in TABLES:
        return of_table(folder, note, config.data_root)
    if note.get("command") == compare.COMMAND and note.get("recipe") in RECIPES:
        return of_comparison(folder, note, config.data_root)
    return None


def of_comparison(folder: Path, note: Mapping[str, Any], data_root: Path) -> Report:
    """Return the report of a comparison: that of the command which names everything that its folder holds."""
    found = {path.parent: recipe for path in sorted(folder.glob(RUNS)) if (recipe := read_recipe(path.parent))}
    written = [(row["row"], row["column"]) for row in read_csv(folder / "results.csv")]
    cells = {(condition_name(recipe.noise), recipe.norm): recipe for recipe in found.values()}
    first = ("clean", "bn")  # where nothing was written yet
    ordered = sorted(cells, key=lambda cell: written.index(cell) if cell in written else len(written) + (cell != first))
    noises = dict.fromkeys(cells[cell].noise for cell in ordered)
    recipe = Recipe.from_dict(note["settings"], folder / NOTE)
    base = recipes.recipe(note["recipe"])
    norms, baseline = tuple(dict.fromkeys(norm for _, norm in ordered)), note.get("baseline")
    settings = [key for key in note["settings"] if key != "task"]
    config = CompareConfig(
        recipe=note["recipe"],
        norms=norms,
        noise=tuple("none" if noise is None else "{:g},{:g}".format(*noise) for noise in noises),
        seeds=1 + max(recipe.seed for recipe in found.values()),
        name=None if folder.name == note["recipe"] else folder.name,
        out=folder.parent,
        data_root=data_root,
        baseline=baseline if baseline in norms else None,
        override={key: vars(recipe)[key] for key in settings if vars(recipe)[key] != vars(base)[key]},
    )
    tell = partial(compare.Comparison, config=config, recipe=recipe)
    return told(compare.plan(config, recipe), tell)


def of_table(folder: Path, note: Mapping[str, Any], data_root: Path) -> Report:
    """Return the report of a table."""
    seeds = 1 + max(int(path.parent.name.removeprefix("seed")) for path in folder.glob(RUNS))
    table, scale = TABLES[note["table"]], note["scale"]
    config = TableConfig(table=table.name, scale=scale, seeds=seeds, out=folder.parent, data_root=data_root)
    grid, left_out = tables.plan(table, config)
    tell = partial(TableReport, table=table, scale=scale, left_out=left_out, data_root=data_root)
    return told(replace(grid, root=folder), tell)


def gathered(config: ReportConfig, folders: Iterable[Path]) -> Report:
    """Return the report of runs from anywhere."""
    return told(gather([*folders]), partial(side_by_side, data_root=config.data_root, places=config.runs))


def told(grid: Grid, tell: Callable[..., Report]) -> Report:
    """Return the report of a grid's runs as they are now."""
    # Of runs from anywhere, those that are not there were never meant to be.
    ended = outcomes([run for run in grid.runs() if run.folder.exists() or not isinstance(grid, Gathered)], {})
    return tell(grid=grid, lines=summarize(grid, ended), complaints=complaints(grid, ended), seconds=None)


def read_networks(report: Report, config: ReportConfig) -> list[Section]:
    """Return what the trained networks of the first seed have learned, and their noise; or why that cannot be said."""
    title, rows, company = "What the gates look at", [], []
    try:
        for which in layers.networks(report.grid, report.lines, config.data_root):
            rows += layers.read(*which)
            company += noise.read(*which)
    except UsageError as error:
        return [Section(title, [Paragraph(f"The trained networks could not be read. {error.words(as_option)}")])]
    return [
        layers.section(rows, layers.ONE_EACH),
        Section(title, [Bullets(layers.follows(rows))]),
        layers.numbers(rows),
        *noise.sections(company, layers.ONE_EACH),
    ]
