"""`calibnorm demo` from start to end."""

from __future__ import annotations

import csv
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from calibnorm.lab.demo import data, plots
from calibnorm.lab.demo.config import CONDITIONS, VARIANTS, DemoConfig
from calibnorm.lab.demo.folder import COMMAND, CONFIG, result_folder
from calibnorm.lab.demo.gates import GateRow
from calibnorm.lab.demo.parallel import Outcome, train_all
from calibnorm.lab.demo.report import HEADER, Report
from calibnorm.lab.demo.results import summarize
from calibnorm.lab.demo.training import Epoch
from calibnorm.report.environment import describe_environment


def run(config: DemoConfig, console: Console | None = None) -> Report:
    """Train, print the table and write the folder.

    Args:
        config: The settings.
        console: Where to print; standard output by default.

    Returns:
        The report that was printed and written.

    Raises:
        UsageError: If the settings contradict each other or ``config.out`` cannot be used; nothing has run then.
    """
    config, console = config.resolved(), console or Console()
    start = time.perf_counter()
    with result_folder(config.out, config.quick) as folder:
        outcomes = train(config, console)
        history = [epoch for outcome in outcomes for epoch in outcome.history]
        digits = data.load()
        report = Report(
            config,
            describe_environment(),
            summarize(history, outcomes[0].parameters),
            [row for outcome in outcomes for row in outcome.gates],
            len(digits.train_labels),
            len(digits.test_labels),
            time.perf_counter() - start,
        )
        write(report, history, folder)
    show(report, console)
    return report


def train(config: DemoConfig, console: Console) -> list[Outcome]:
    """Train everything behind a progress bar."""
    tasks = len(CONDITIONS) * config.seeds
    total = tasks * len(config.norms) * config.epochs * data.load().steps(config.batch_size)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
        names = ", ".join(VARIANTS[norm].label for norm in config.norms)
        bar = progress.add_task(f"{names}: {2 * config.seeds} runs each", total=total)
        return train_all(config, lambda steps: progress.update(bar, completed=steps))


def write(report: Report, history: Sequence[Epoch], folder: Path) -> None:
    """Write everything that a demo leaves behind."""
    write_json(folder / CONFIG, {"command": COMMAND, **report.config.to_dict()})
    write_json(folder / "environment.json", report.environment)
    write_csv(folder / "metrics.csv", history)
    plots.draw_curves(history, report.config, report.test_images, folder / "curves.png")
    if report.gates:
        write_csv(folder / "gates.csv", report.gates)
        plots.draw_gates(report.gates, report.config, folder / "gates.png")
    (folder / "report.md").write_text(report.markdown(), encoding="utf-8")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file that is good to read and to compare."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_csv(path: Path, rows: Sequence[Epoch] | Sequence[GateRow]) -> None:
    """Write dataclass instances, one a line."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in dataclasses.fields(rows[0]))
        writer.writerows(dataclasses.astuple(row) for row in rows)


def show(report: Report, console: Console) -> None:
    """Print the table, what it means, and where the rest is."""
    console.print(f"\n{report.setting()}\n", highlight=False)
    for condition in CONDITIONS:
        name = plots.title(condition, report.config)
        table = Table(title=name, title_justify="left", box=SIMPLE_HEAD, show_edge=False)
        for number, column in enumerate(HEADER):
            justify: Literal["left", "right"] = "right" if number else "left"
            table.add_column(column, justify=justify, no_wrap=True, min_width=len(column))
        for row in report.rows_of(condition):
            table.add_row(*map(Text, report.cells(row)))
        console.print(table, "")
    for condition in CONDITIONS:
        console.print(report.verdict(condition), highlight=False)
    for sentence in report.gate_finding():
        console.print(sentence, highlight=False)
    console.print("\n[bold]What these numbers do and do not show[/bold]")
    for limit in report.limits():
        console.print(f"- {limit}", highlight=False)
    console.print(
        f"\nReport and pictures: {report.config.out / 'report.md'}   ({report.seconds:.0f} s)", highlight=False
    )
