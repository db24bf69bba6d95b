"""`calibnorm demo`: a comparison that shows what depth does to a norm, and what the trained gates look at."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean, median
from typing import Any, ClassVar

from rich.console import Console

import calibnorm as cn
from calibnorm.lab.experiments import compare
from calibnorm.lab.experiments.compare import Comparison
from calibnorm.lab.experiments.config import CompareConfig
from calibnorm.lab.experiments.grid import Cell
from calibnorm.lab.experiments.summary import Line
from calibnorm.lab.training.folder import TIMING
from calibnorm.lab.training.trained import trained
from calibnorm.report import pictures
from calibnorm.report.document import Bullets, Paragraph, Picture, Section, Table
from calibnorm.report.files import write_csv
from calibnorm.report.pictures import Point

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
        steps = []
        for seed in self.grid.seeds:
            path = self.grid.run(cell, seed).folder / TIMING
            if path.exists():
                with path.open(newline="", encoding="utf-8") as file:
                    for row in csv.DictReader(file):
                        steps.append(sum(float(value) for name, value in row.items() if name.endswith("_ms")))
        return median(steps) if steps else None

    @cached_property
    def gates(self) -> list[dict[str, Any]]:
        """What the networks of the first seed have learned, layer by layer, and their gates on the test images."""
        rows: list[dict[str, Any]] = []
        for line in self.lines:
            seed = self.grid.seeds[0]
            if line.outcomes[seed].finished and line.cell.column != "bn":
                with trained(self.grid.run(line.cell, seed).folder, self.config.data_root) as of:
                    found = [*cn.inspect.learned(of.network), *cn.inspect.gates(of.network, of.feeds.test)]
                where = {"condition": line.cell.row, "norm": line.cell.column}
                on_data = dict.fromkeys(("images", "std_over_images", "spread"))  # what learned tensors have not
                rows += [{**where, **on_data, **vars(row)} for row in found]
        return rows

    def more_sections(self) -> list[Section]:
        """Return the picture of the gates by layer, and how far they follow the image."""
        differences = super().more_sections()
        if not self.gates:
            return differences
        columns: dict[str, dict[str, dict[str, list[Point]]]] = {}
        starts: dict[tuple[str, str], float] = {}
        for row in self.gates:
            panel = columns.setdefault(row["norm"], {}).setdefault(row["quantity"], {})
            point = Point(row["depth"], row["mean"], row["p10"], row["p90"])
            panel.setdefault(row["condition"], []).append(point)
            if row["initial"] is not None:
                starts[row["norm"], row["quantity"]] = row["initial"]
        about = (
            f"Networks of seed {self.grid.seeds[0]}. Lines are means over a layer's channels; bands hold the middle "
            "eight tenths. A gate itself is averaged over the test images."
        )
        draw = partial(pictures.bands, columns, "norm layer, from input to output", starts, logarithmic=False)
        picture = Picture("gates.png", "Gates and calibration weights by layer", draw)
        follow = Bullets([self.follows(row, line) for row in self.grid.rows for line in self.of(row) if self.on(line)])
        return [
            *differences,
            Section("Learned gates by layer", [Paragraph(about), picture], on="file"),
            Section("What the gates look at", [follow]),
        ]

    def on(self, line: Line) -> list[Mapping[str, Any]]:
        """Return the rows of a cell's gates."""
        where = (line.cell.row, line.cell.column, "gate")
        return [row for row in self.gates if (row["condition"], row["norm"], row["quantity"]) == where]

    def follows(self, row: str, line: Line) -> str:
        """Say how far the gates of a cell follow the image."""
        of = self.on(line)
        mean, std = fmean(gate["mean"] for gate in of), fmean(gate["std_over_images"] for gate in of)
        start = of[0]["initial"]
        began = "" if start is None else f" (it started at {start:.3f})"
        constant = " For practical purposes that is a constant." if std < 0.01 * mean else ""
        return (
            f"{row}, {line.cell.column}: the gate is {mean:.3f} on average over layers and channels{began}; from one "
            f"test image to another it varies by {std:.2g} (std).{constant}"
        )

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

    def write(self) -> list[Path]:
        """Write tables, pictures and the report into the comparison's folder."""
        if self.gates:
            write_csv(self.grid.root / "gates.csv", self.gates)
        return super().write()

    def command_line(self) -> str:
        """Return the command."""
        return "calibnorm demo --quick" if self.config.quick else super().command_line()
