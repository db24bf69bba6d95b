"""What is said of a grid's runs: on the screen, as Markdown, as CSV and in pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console

from calibnorm.lab.experiments import plots
from calibnorm.lab.experiments.grid import Grid
from calibnorm.lab.experiments.origins import made_with
from calibnorm.lab.experiments.summary import Line, results, summary
from calibnorm.report.document import Block, Bullets, Document, Picture, Section
from calibnorm.report.files import write_csv


@dataclass(frozen=True)
class Report(ABC):
    """What every report says; what it compares, a command's own report adds.

    Args:
        grid: The runs.
        lines: A line for every cell of the grid.
        complaints: A sentence for every run that did not finish.
        seconds: Wall time of this command.
    """

    grid: Grid
    lines: Sequence[Line]
    complaints: Sequence[str]
    seconds: float

    @property
    @abstractmethod
    def title(self) -> str:
        """What is compared."""

    @abstractmethod
    def findings(self) -> Iterable[Block]:
        """Return what came out, for the written report."""

    @abstractmethod
    def short_findings(self) -> Iterable[Block]:
        """Return what came out, for the screen."""

    @abstractmethod
    def limits(self) -> list[str]:
        """Return what the numbers mean and what they leave open."""

    @abstractmethod
    def command_line(self) -> str:
        """Return a command that makes these runs."""

    def more_sections(self) -> Iterable[Section]:
        """Return sections that stand before the pictures of the runs."""
        return ()

    def more_columns(self, line: Line) -> dict[str, str]:
        """Return what summary.csv says of a cell beside its runs."""
        return {}

    def of(self, row: str) -> list[Line]:
        """Return the lines of a row."""
        return [line for line in self.lines if line.cell.row == row]
