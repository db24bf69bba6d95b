"""What is said of a grid's runs: on the screen, as a page, as Markdown, as CSV and in pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from calibnorm.lab.experiments import plots, texts
from calibnorm.lab.experiments.grid import Grid
from calibnorm.lab.experiments.origins import made_with
from calibnorm.lab.experiments.summary import Line, results, summary
from calibnorm.report import pictures, screen
from calibnorm.report.document import Bullets, Document, Paragraph, Picture, Section, Table
from calibnorm.report.files import write_csv
from calibnorm.report.measure import Measure
from calibnorm.report.writing import write

SEEDS = "from three seeds on, its 95 % interval"


@dataclass(frozen=True)
class Report(ABC):
    """What every report says. A command's own report adds what is compared, and what came out.

    Args:
        grid: The runs.
        lines: A line for every cell of the grid.
        complaints: A sentence for every run that did not finish.
        seconds: Wall time of this command; None where the runs were trained by another one.
        found: What else was found out about the runs.
    """

    grid: Grid
    lines: Sequence[Line]
    complaints: Sequence[str]
    seconds: float | None
    found: Sequence[Section] = ()

    @property
    @abstractmethod
    def title(self) -> str:
        """What is compared."""

    @abstractmethod
    def findings(self) -> list[Section]:
        """Return what came out."""

    @abstractmethod
    def limits(self) -> Section:
        """Return what the numbers mean and what they leave open."""

    @abstractmethod
    def command_line(self) -> str:
        """Return a command that makes these runs."""

    def more_sections(self) -> list[Section]:
        """Return sections that stand before the pictures of the runs."""
        return []

    def more_columns(self, line: Line) -> dict[str, str]:
        """Return what summary.csv says of a cell beside its runs."""
        return {}

    @property
    def measure(self) -> Measure:
        """What compares the runs."""
        return self.lines[0].measure

    def of(self, row: str) -> list[Line]:
        """Return the lines of a row."""
        return [line for line in self.lines if line.cell.row == row]

    def document(self) -> Document:
        """Return the report."""
        return Document(
            self.title,
            [
                *self.findings(),
                Section("Runs that failed or are missing", [Bullets(self.complaints, wrong=True)]),
                *self.more_sections(),
                *self.pictures(),
                *self.found,
                self.limits(),
                *made_with(self.command_line(), self.seconds, self.grid),
            ],
        )

    def pictures(self) -> list[Section]:
        """Return every run and the learning curves, drawn and in numbers."""
        measure, curves = self.measure, plots.curves(self.grid)
        shown = " and ".join(dict.fromkeys(axis.partition(" (")[0] for of in curves.values() for axis in of))
        rows = [{name: row[name] for name in row if name not in ("folder", "message")} for row in self.results]
        return [
            Section(
                "Every run",
                [
                    Paragraph(f"Dots are runs, thin lines connect those of a seed; below them the mean and, {SEEDS}."),
                    Picture(
                        f"{measure.plural.replace(' ', '_')}.png",
                        f"{texts.beginning(measure.label)} of every run",
                        partial(plots.finals, self.grid, self.lines),
                    ),
                ],
                on="file",
            ),
            Section("Every run in numbers", [Table.of(rows, left=2)], on="page", folded=True),
            Section(
                "Learning curves",
                [
                    Paragraph("Lines are means over seeds, bands reach from the least to the greatest."),
                    Picture("curves.png", f"{texts.beginning(shown)} over epochs", partial(pictures.curves, curves)),
                ]
                if curves
                else [],
                on="file",
            ),
        ]

    @property
    def results(self) -> list[dict[str, Any]]:
        """The lines of results.csv."""
        return results(self.grid, self.lines)

    def write(self, folder: Path | None = None) -> list[Path]:
        """Write tables, pictures and the report into a folder; return the report's files, the page first.

        Args:
            folder: That of the grid by default.
        """
        root = folder or self.grid.root
        write_csv(root / "results.csv", self.results)
        write_csv(root / "summary.csv", [summary(line) | self.more_columns(line) for line in self.lines])
        return write(self.document(), root)

    def show(self, console: Console) -> None:
        """Print what came out."""
        screen.show(self.document(), console)
