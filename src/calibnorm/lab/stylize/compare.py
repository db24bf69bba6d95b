"""What `calibnorm stylize compare` says: pictures beside pictures, losses over steps, and what a batch does to one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import calibnorm as cn
from calibnorm.lab import tasks
from calibnorm.lab.data import unlabelled
from calibnorm.lab.data.listing import listed
from calibnorm.lab.data.pictures import Pictures
from calibnorm.lab.experiments.compare import Comparison
from calibnorm.lab.experiments.grid import Cell
from calibnorm.lab.experiments.outcomes import curve
from calibnorm.lab.recipes import Stylization
from calibnorm.lab.stylize.opening import opened
from calibnorm.lab.tasks.stylize import Stylize
from calibnorm.report import pictures
from calibnorm.report.document import Paragraph, Picture, Section, Table
from calibnorm.report.files import write_csv
from calibnorm.report.pictures import Mosaic

LARGER = 4 / 3
"""Pixels a side of the pictures that are shown, over those that were trained on."""
MOST_SHOWN = 4
"""Photographs of the grid."""
SHOWN_LOSSES = ("train_style_loss", "train_content_loss", "test_style_loss", "test_content_loss")
STRONGER = 2
"""Times that a difference between two pictures is enlarged."""
POOL, PROBES, DRAWS = 48, 12, 4
"""Of a reading of the batch noise."""


@dataclass(frozen=True, kw_only=True)
class StyleComparison(Comparison):
    """What is said of style networks: a comparison, the pictures, the losses, and what the company does."""

    recipe: Stylization

    def more_sections(self) -> list[Section]:
        """Return the pictures, the losses over the steps, the batch noise, and the differences."""
        whose = Paragraph(f"Features that were compared: {self.task(self.grid.cells[0]).features_in_words}.")
        return [
            Section("Photographs in the styles", [whose, Paragraph(_SHOWN), *self.grids()], on="file"),
            self.losses(),
            self.company(),
            *super().more_sections(),
        ]

    def task(self, cell: Cell) -> Stylize:
        """Return the task of a cell."""
        task = tasks.of(cell.recipe)
        assert isinstance(task, Stylize)
        return task

    @cached_property
    def networks(self) -> dict[tuple[str, str], nn.Module]:
        """The trained networks of the first finished seed, by row and column."""
        found: dict[tuple[str, str], nn.Module] = {}
        for line in self.lines:
            seed = next((seed for seed, of in line.outcomes.items() if of.finished), None)
            if seed is not None:
                found[line.cell.row, line.cell.column] = opened(self.grid.run(line.cell, seed).folder).network
        return found

    @cached_property
    def photographs(self) -> dict[str, Tensor]:
        """Photographs that were not trained on, (3, H, W) from 0 to 1, by name."""
        content = self.recipe.content
        _, paths = unlabelled.find(None if content is None else Path(content))
        of = Pictures(listed(paths[:MOST_SHOWN], "test"), round(LARGER * self.recipe.image_size), 0, "none")
        read = ((path.stem, of[0, number]) for number, path in enumerate(paths[:MOST_SHOWN]))
        return {name: found[0].float() / 255 for name, found in read if isinstance(found, tuple)}

    def grids(self) -> Iterator[Picture]:
        """Yield, for every style, a grid of photographs and of what every norm makes of them: Figure 2."""
        for row in self.grid.rows:
            if any(name == row for name, _ in self.networks):
                shows = f"Style {row}: the style, photographs, and what networks of each norm make of them"
                yield Picture(f"pictures-{row.replace(', ', '-')}.jpg", shows, partial(self.mosaic, row))

    @torch.no_grad()
    def mosaic(self, row: str) -> Mosaic:
        """Return the grid of a style."""
        cell = next(cell for cell in self.grid.cells if cell.row == row)
        size, columns = round(LARGER * self.recipe.image_size), self.grid.columns(row)
        style = nn.functional.interpolate(self.task(cell).style[None], (size, size), mode="bilinear", antialias=True)[0]
        rows: dict[str, list[Tensor | None]] = {}
        for number, (name, photograph) in enumerate(self.photographs.items()):
            nets = (self.networks.get((row, column)) for column in columns)
            made = [None if net is None else shown(net(photograph[None])[0]) for net in nets]
            rows[name] = [shown(style) if number == 0 else None, shown(photograph), *made]
        return Mosaic(["style", "photograph", *columns], rows)

    def losses(self) -> Section:
        """Return style and content losses over the steps, a column for each style: Figures 3 and 5."""
        columns: dict[str, dict[str, dict[str, list[list[tuple[float, float]]]]]] = {}
        for cell in self.grid.cells:
            for name in SHOWN_LOSSES:
                runs = [
                    [(self.step(row["epoch"]), row[name]) for row in curve(self.grid.run(cell, s))]
                    for s in self.grid.seeds
                ]
                axis = name.replace("_", " ").replace("train", "training")
                columns.setdefault(cell.row, {}).setdefault(axis, {})[cell.column] = runs
        draw = partial(pictures.curves, columns, "step")
        picture = Picture(
            "steps.png", "Style and content losses over steps, in training and on other photographs", draw
        )
        return Section("Losses over the steps", [Paragraph(_LOSSES), picture], on="file")

    def step(self, epoch: float) -> float:
        """Return after how many steps an epoch ended."""
        return epoch * self.recipe.steps / self.recipe.epochs

    @cached_property
    def others(self) -> Tensor:
        """Parts of training photographs, which share batches with a photograph."""
        place = tasks.Place(device=torch.device("cpu"), rank=0, world=1)
        feed = self.task(self.grid.cells[0]).feeds(Path(), place, 0).train
        images = (image for epoch in count() for batch, _ in feed.batches(epoch, 0) for image in batch)
        return torch.stack(list(islice(images, POOL)))

    def company(self) -> Section:
        """Return how much of a picture is the doing of the batch, and a photograph in different company."""
        rows = self.noise
        if not rows:
            return Section("The rest of the batch", [])
        row = self.grid.rows[0]
        shows = f"Style {row}: a photograph in two batches while the network trains, and the difference"
        picture = Picture("company.jpg", shows, partial(self.in_company, row))
        return Section("The rest of the batch", [Paragraph(_COMPANY), Table.of(rows, left=2), picture], on="file")

    @cached_property
    def noise(self) -> list[dict[str, Any]]:
        """The batch-noise meter at the end of every network."""
        rows = []
        for (row, column), net in self.networks.items():
            kept = copy.deepcopy(net).train()
            sizes = (self.recipe.batch_size,)
            of: dict[str, Any] = {"where": lambda name, module: name == "last", "pool": POOL, "gradients": False}
            (last,) = cn.inspect.batch_noise(kept, self.others, PROBES, sizes, DRAWS, **of).layers
            share = last.accumulated[self.recipe.batch_size]
            apart = (self.pair(kept)[0] - self.pair(kept)[1]).abs().mean()
            rows.append(
                {"style": row, "norm": column, "share_of_variance": float(share), "low": share.low, "high": share.high}
                | {"mean_difference_of_255": 255 * float(apart)}
            )
        return rows

    @torch.no_grad()
    def pair(self, net: nn.Module) -> tuple[Tensor, Tensor]:
        """Return what a network in training makes of a photograph in two batches."""
        size, wide = self.recipe.batch_size - 1, self.recipe.image_size
        photograph = next(iter(self.photographs.values()))[:, :wide, :wide]
        net = copy.deepcopy(net).train()
        first, second = (net(torch.cat([photograph[None], self.others[n * size : (n + 1) * size]]))[0] for n in (0, 1))
        return first, second

    def in_company(self, row: str) -> Mosaic:
        """Return a photograph in two batches by norm, and the difference."""
        rows: dict[str, list[Tensor | None]] = {"first batch": [], "second batch": [], f"difference x {STRONGER}": []}
        columns = [column for column in self.grid.columns(row) if (row, column) in self.networks]
        for column in columns:
            first, second = self.pair(self.networks[row, column])
            for name, tile in zip(rows, (first, second, STRONGER * (first - second).abs()), strict=True):
                rows[name].append(shown(tile))
        return Mosaic(columns, rows)

    def write(self, folder: Path | None = None) -> list[Path]:
        """Write tables, pictures and the report into a folder, that of the comparison by default."""
        if self.noise:
            write_csv((folder or self.grid.root) / "batch_noise.csv", self.noise)
        return super().write(folder)


def shown(picture: Tensor) -> Tensor:
    """Return a picture from 0 to 1 in uint8."""
    return (255 * picture.clamp(0, 1)).round().to(torch.uint8)


_SHOWN = (
    "Photographs that were not trained on, a third larger than what was, by the networks of the first seed in "
    "evaluation: BatchNorm and its calibrations normalize by running statistics."
)
_LOSSES = (
    "Lines are means over seeds, bands reach from the least to the greatest. Training losses are means over the steps "
    "of an epoch, as they were trained on; test losses are those of photographs that were not trained on, with "
    "the network in evaluation."
)
_COMPANY = (
    "In training, BatchNorm makes of a photograph what its batch says. The share is that of the variance of the last "
    "convolution's output that is the doing of the other pictures (docs/batch-noise.md); the difference is that "
    "between a photograph's two results in two batches, in steps of a pixel's 255. In evaluation both are 0."
)
