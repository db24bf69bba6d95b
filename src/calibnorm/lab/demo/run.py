"""`calibnorm demo` from start to end."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from torch import nn

from calibnorm.lab.demo import data, plots
from calibnorm.lab.demo.config import CONDITIONS, DemoConfig, NormName
from calibnorm.lab.demo.folder import COMMAND, CONFIG, result_folder
from calibnorm.lab.demo.gates import GateRow, describe
from calibnorm.lab.demo.report import HEADER, Report
from calibnorm.lab.demo.results import summarize
from calibnorm.lab.demo.training import Epoch, train_side_by_side
from calibnorm.lab.environment import describe_environment


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
    with result_folder(config.out) as folder, torch_threads(config.threads):
        digits = data.load()
        history, gates, parameters = train_all(config, digits, console)
        report = Report(
            config,
            describe_environment(),
            summarize(history, parameters),
            gates,
            len(digits.train_labels),
            len(digits.test_labels),
            time.perf_counter() - start,
        )
        write(report, history, folder)
    show(report, console)
    return report


def train_all(
    config: DemoConfig, digits: data.Digits, console: Console
) -> tuple[list[Epoch], list[GateRow], dict[NormName, int]]:
    """Train every norm, condition and seed; return their figures, seed 0's gates and the networks' sizes."""
    history: list[Epoch] = []
    gates: list[GateRow] = []
    parameters: dict[NormName, int] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
        steps = len(CONDITIONS) * config.seeds * config.epochs * digits.steps(config.batch_size)
        bar = progress.add_task("starting", total=steps * len(config.norms))
        # Seeds outside: what a machine that slows down over minutes does falls on both conditions.
        for seed in range(config.seeds):
            for condition in CONDITIONS:

                def on_step(epoch: int, where: str = f"{condition}, seed {seed}") -> None:
                    text = f"{where}, epoch {epoch}/{config.epochs}"
                    progress.update(bar, advance=len(config.norms), description=text)

                epochs, networks = train_side_by_side(config, digits, condition, seed, on_step)
                history += epochs
                parameters = {norm: count(network) for norm, network in networks.items()}
                if seed == 0:
                    gates += describe(networks, condition, digits.test_images)
    return history, gates, parameters


def count(network: nn.Module) -> int:
    """Return how many learnable numbers a network has."""
    return sum(parameter.numel() for parameter in network.parameters())


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Run a block with so many torch threads, but no more than there are processors."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(number, os.cpu_count() or 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
        table = Table(title=plots.title(condition, report.config), title_justify="left", box=SIMPLE_HEAD)
        for number, name in enumerate(HEADER):
            table.add_column(name, justify="right" if number else "left", no_wrap=True, min_width=len(name))
        for row in report.rows_of(condition):
            table.add_row(*report.cells(row))
        console.print(table)
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
