"""`calibnorm demo`: a comparison that shows what depth does to a norm, and what the trained gates look at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

from rich.console import Console

from calibnorm.lab.experiments import compare, layers
from calibnorm.lab.experiments.compare import Comparison
from calibnorm.lab.experiments.config import CompareConfig
from calibnorm.lab.experiments.grid import Cell
from calibnorm.lab.training.folder import read_timings
from calibnorm.report.document import Bullets, Section, Table
from calibnorm.report.files import write_csv

CONTROL = "bn:gamma_init=0.269,skip=shortcut"
"""BatchNorm that starts with the scale that IEBN starts with, sigmoid(-1) = 0.269, but not in shortcuts."""
SMALL_RBN = "rbn:init=(0,0,-1)"
"""RBN that starts with the same scale; neither paper has it."""
QUICK: dict[str, Any] = {"model": "resnet11", "epochs": 1}
"""What --quick replaces in the recipe."""


@dataclass(frozen=True)
class DemoConfig(CompareConfig):
    """The settings of `calibnorm demo`: those of a comparison."""

    default_noise: ClassVar[tuple[str, ...]] = ("none", "0.8,0.5")

    recipe: str = "digits-deep"
    """Recipe that all runs share; `calibnorm train --list` lists them."""
    norms: tuple[str, ...] = ("bn", CONTROL, "iebn", "rbn", SMALL_RBN)
    """What to compare, options behind a colon: bn:gamma_init=0.269."""
    seeds: int = 2
    """Runs of each norm in each condition; each seed gives all norms the same initial weights and batches."""
    name: str | None = "demo"
    """Name of the comparison. Runs that it holds are not trained again."""
    quick: bool = False
    """Seconds, not minutes: one seed and one epoch of a small network. Accuracies mean nothing."""

    def resolved(self) -> DemoConfig:
        """Return the settings that run: with ``quick``, those of the short run, except where a value is given."""
        if not self.quick:
            return self
        name = f"{self.name}-quick" if self.name == type(self).name else self.name
        seeds = 1 if self.seeds == type(self).seeds else self.seeds
        return replace(self, override=QUICK | self.override, seeds=seeds, name=name)


def run(config: DemoConfig, console: Console | None = None) -> int:
    """Train what is missing, print the tables and write the report; arguments, status and errors are compare's."""
    return compare.run(config.resolved(), console, Demonstration)


@dataclass(frozen=True, kw_only=True)
class Demonstration(Comparison):
    """What is said of the demo: a comparison, what it shows, and the gates of the trained networks."""

    config: DemoConfig

    @property
    def title(self) -> str:
        """What the demo is about."""
        return "calibnorm demo: deep networks on handwritten digits"

    def findings(self) -> list[Section]:
        """Return the tables, what they show, and what a training step costs."""
        quick = "A quick run: it shows that everything works; its accuracies mean nothing."
        shown = Bullets([quick] if self.config.quick else [text for row in self.grid.rows for text in self.shows(row)])
        return [*super().findings(), Section("What this shows", [shown]), Section("Time", [self.times()])]

    def shows(self, row: str) -> Iterator[str]:
        """Yield what a condition shows of IEBN, and how much of that its small initial scale does by itself."""
        means = {line.cell.column: line.own.mean for line in self.of(row) if line.own.values}
        if not {"bn", "iebn"} <= means.keys():
            return
        bn, iebn, text = means["bn"], means["iebn"], self.measure.text
        yield (
            f"{row}: {self.recipe.model} comes to {text(iebn)} in {self.recipe.epochs} epochs with IEBN, and to "
            f"{text(bn)} with BatchNorm ({text(self.measure.chance / 2)} is guessing)."
        )
        if CONTROL in means and iebn - bn > 5:
            yield (
                f"{row}: BatchNorm that merely starts with IEBN's small scale, without a gate, comes to "
                f"{text(means[CONTROL])}: that is {100 * (means[CONTROL] - bn) / (iebn - bn):.0f} % of the difference."
            )

    def times(self) -> Table:
        """Return the time of a training step by norm, over that of BatchNorm."""
        rows = []
        for row in self.grid.rows:
            took = {line.cell.column: self.step_ms(line.cell) for line in self.of(row)}
            base = took.get("bn")
            for norm, ms in took.items():
                ratio = f"{ms / base:.2f}" if ms and base else "–"
                rows.append([row, norm, f"{ms:.1f}" if ms else "–", ratio])
        return Table(["condition", "norm", "ms a step", "of BN's"], rows, left=2, split=True)

    def step_ms(self, cell: Cell) -> float | None:
        """Return the median time of a step over epochs and seeds, in milliseconds; None where no run has any."""
        folders = [self.grid.run(cell, seed).folder for seed in self.grid.seeds]
        steps = [timing.step_ms for folder in folders for timing in read_timings(folder)]
        return median(steps) if steps else None

    @cached_property
    def gates(self) -> layers.Rows:
        """What the networks of the first seed have learned, layer by layer, and their gates on the test images."""
        networks = layers.networks(self.grid, self.lines, self.config.data_root)
        return [row for of in networks for row in layers.read(*of)]

    def more_sections(self) -> list[Section]:
        """Return the picture of the gates by layer, and how far they follow the image."""
        return [
            *super().more_sections(),
            layers.section(self.gates, layers.ONE_EACH),
            layers.numbers(self.gates),
            Section("What the gates look at", [Bullets(layers.follows(self.gates))]),
        ]

    def limits(self) -> Section:
        """Return what the numbers do and do not show."""
        section = super().limits()
        more = [
            "Images of 8 x 8 pixels and a schedule this short say nothing about ImageNet or about fully trained "
            "networks. The recipe is the usual one of a CIFAR ResNet, only shorter; it was not tuned for any norm.",
            "The constant noise turns the standardized x into N_a * x + N_b in every norm, in training and in testing. "
            "It is not random, and gamma and beta could undo it: what it tests is how training copes with that start.",
            "Times are medians of steps in processes of one thread that share the machine; `calibnorm bench model` "
            "measures them beside each other.",
        ]
        blocks = [Bullets([*block.items, *more]) for block in section.blocks if isinstance(block, Bullets)]
        return Section("What these numbers do and do not show", blocks)

    def write(self, folder: Path | None = None) -> list[Path]:
        """Write tables, pictures and the report into a folder, that of the comparison by default."""
        if self.gates:
            columns = list(dict.fromkeys(name for row in self.gates for name in row))  # a gate on data has more
            write_csv((folder or self.grid.root) / "gates.csv", self.gates, columns)
        return super().write(folder)

    def command_line(self) -> str:
        """Return the command."""
        return "calibnorm demo --quick" if self.config.quick else super().command_line()
