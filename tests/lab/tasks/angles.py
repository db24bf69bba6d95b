"""A task that the package does not have, whole: how far a digit was turned, by regression. No classes, no labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import calibnorm as cn
from calibnorm.lab import data
from calibnorm.lab.data.seeding import generator
from calibnorm.lab.recipes import Recipe
from calibnorm.lab.tasks import Feeds, Network, Place, Task, Together
from calibnorm.report.measure import Measure

Turned = tuple[Tensor, Tensor]
"""Digits (B, 1, 8, 8), and the angles (B,) in radians by which they were turned."""


@dataclass(frozen=True)
class Angles(Recipe):
    """Settings of the angle of digits."""

    task = "angles"
    widest: float = 1.0
    """Largest angle, in radians, to either side."""


class TurnedDigits(data.Feed[Turned]):
    """Digits in an order and by angles that each epoch of training draws anew, and the test once."""

    def __init__(self, recipe: Angles, place: Place, train: bool) -> None:
        super().__init__()
        digits = data.load("digits", Path())
        images = (digits.train if train else digits.test).images.float() / 255
        self.images, self.recipe, self.place, self.train = images.to(place["device"]), recipe, place, train

    def __len__(self) -> int:
        return len(self.images) // self.recipe.batch_size

    def batches(self, epoch: int, start: int) -> Iterator[Turned]:
        draw = generator("angles", self.recipe.seed, epoch) if self.train else generator("test angles")
        order = torch.randperm(len(self.images), generator=draw)
        angles = self.recipe.widest * (2 * torch.rand(len(order), generator=draw) - 1)
        for number in range(start, len(self)):
            rows = data.share(number, self.recipe.batch_size, self.place["rank"], self.place["world"])
            images, angle = self.images[order[rows]], angles[rows].to(self.place["device"])
            sine, cosine, zero = angle.sin(), angle.cos(), torch.zeros_like(angle)
            turn = torch.stack([cosine, -sine, zero, sine, cosine, zero], 1).view(-1, 2, 3)
            yield F.grid_sample(images, F.affine_grid(turn, list(images.shape), False), align_corners=False), angle


class Turn(Task[Turned], recipes=Angles):
    """How far a digit was turned; runs are compared by the mean absolute error."""

    recipe: Angles
    headline = Measure("test_angle_error", "rad", digits=3)
    measures = (Measure("train_loss", digits=4), Measure("test_loss", digits=4), headline)

    def feeds(self, data_root: Path, place: Place, workers: int | None) -> Feeds[Turned]:
        return Feeds(TurnedDigits(self.recipe, place, True), TurnedDigits(self.recipe, place, False))

    def network(self, feeds: Feeds[Turned]) -> nn.Module:
        norm, shapes = cn.norm_layer(self.recipe.norm, noise=self.recipe.noise), ((1, 16, 3), (16, 16, 3))
        blocks = [layer for shape in shapes for layer in (nn.Conv2d(*shape), norm(shape[1]), nn.ReLU())]
        return nn.Sequential(*blocks, nn.Flatten(), nn.Dropout(0.1), nn.Linear(16 * 4 * 4, 1))

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(cn.param_groups(network, self.recipe.weight_decay), self.recipe.learning_rate)

    def loss(self, network: Network, batch: Turned) -> tuple[Tensor, Tensor]:
        errors = network(batch[0]).flatten().float() - batch[1]
        figures = torch.stack([errors.square().mean(), errors.abs().mean(), errors.new_ones(())])
        return figures[0], len(errors) * figures.detach().double()

    def train_figures(self, sums: Tensor) -> dict[str, float]:
        return {"train_loss": float(sums[0] / sums[2])}

    def meter(self, device: torch.device) -> AngleError:
        return AngleError(self)


class AngleError:
    """Loss and mean absolute error on the test digits."""

    def __init__(self, task: Turn) -> None:
        self.task, self.batches = task, list[Tensor]()

    def add(self, network: Network, batch: Turned) -> None:
        self.batches.append(self.task.loss(network, batch)[1])

    def figures(self, together: Together) -> dict[str, float]:
        loss, error, images = together.sum(torch.stack(self.batches).sum(0)).tolist()
        return {"test_loss": loss / images, "test_angle_error": error / images}
