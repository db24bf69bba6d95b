"""The loop, on Lightning Fabric: devices, processes and mixed precision are Fabric's, the order of things is ours.

Not Lightning's Trainer: its own restart in the middle of an epoch depends on its version and leaves random numbers and
metrics to the user, which is most of what an exact resumption is.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import nn

import calibnorm as cn
from calibnorm.lab import data, models
from calibnorm.lab.data.shrinking import shrink
from calibnorm.lab.environment import describe_environment
from calibnorm.lab.recipes import Recipe
from calibnorm.lab.training import folder as folders
from calibnorm.lab.training.checkpoints import Checkpoints
from calibnorm.lab.training.folder import Result
from calibnorm.lab.training.schedule import learning_rate
from calibnorm.lab.training.seeds import derive
from calibnorm.lab.training.state import Progress, Row, Sums, cross_entropy


def train(recipe: Recipe, folder: Path, *, data_root: Path, accelerator: str = "auto") -> Result:
    """Train a recipe into a folder; go on where the folder holds an unfinished run of it.

    Args:
        recipe: The settings.
        folder: For the run; made where it is missing.
        data_root: Where data sets lie.
        accelerator: "cpu", "cuda" or "auto".

    Returns:
        The result, that of before where the run is finished already.

    Raises:
        UsageError: The folder holds something else, the data are missing, or a setting cannot be used.
    """
    images = data.load(recipe.data, data_root, train_images=recipe.train_images)
    if recipe.image_size is not None:
        images = shrink(images, recipe.image_size)
    folders.claim(folder, recipe)
    if (done := folders.read_result(folder)) is not None:
        return done
    folders.write_json(folder / folders.ENVIRONMENT, describe_environment())
    fabric = Fabric(accelerator=accelerator, devices=1)
    run = Run(recipe, fabric, images, Checkpoints(folder / folders.CHECKPOINTS, fabric.print))
    run.restore()
    start = time.perf_counter() - run.seconds
    while run.progress.epoch < recipe.epochs:
        run.epoch()
        run.seconds = time.perf_counter() - start
        run.save()
        folders.write_metrics(folder / folders.METRICS, run.progress.rows)
    result = run.result()
    folders.write_json(folder / folders.RESULT, vars(result))
    return result


class Run:
    """A run on its way."""

    def __init__(self, recipe: Recipe, fabric: Fabric, images: data.ImageSet, checkpoints: Checkpoints) -> None:
        self.recipe, self.fabric, self.checkpoints = recipe, fabric, checkpoints
        common = {"batch_size": recipe.batch_size, "device": fabric.device}
        self.train_feed = data.train_feed(images, seed=recipe.seed, augment=recipe.augment, **common)
        self.test_feed = data.test_feed(images, **common)
        self.bare = build(recipe, images)
        self.parameters = sum(p.numel() for p in self.bare.parameters())
        groups = cn.param_groups(self.bare, recipe.weight_decay, decay_gates=recipe.decay_gates)
        optimizer = torch.optim.SGD(groups, recipe.learning_rate, recipe.momentum, nesterov=recipe.nesterov)
        self.network, self.optimizer = fabric.setup(self.bare, optimizer)
        self.progress = Progress()
        self.seconds = 0.0

    def epoch(self) -> None:
        """Train through the feed once, then test."""
        recipe, sums = self.recipe, Sums(self.fabric.device)
        self.train_feed.set_epoch(self.progress.epoch)
        self.network.train()
        rate = 0.0
        for images, labels in self.train_feed:
            torch.manual_seed(derive(recipe.seed, "step", self.progress.step))
            rate = learning_rate(recipe, self.progress.step, len(self.train_feed))
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            logits = self.network(images)
            loss = cross_entropy(logits, labels, recipe.label_smoothing)
            self.fabric.backward(loss)
            self.optimizer.step()
            self.optimizer.zero_grad()
            sums.add(loss.detach(), logits.detach(), labels)
            self.progress.step += 1
        self.progress.epoch += 1
        number = self.progress.epoch
        tested = number % recipe.test_every == 0 or number == recipe.epochs
        figures = self.test() if tested else (math.nan, math.nan, math.nan)
        train_loss, train_accuracy, _ = sums.means()
        self.progress.rows.append(Row(number, train_loss, train_accuracy, *figures, rate))

    def test(self) -> tuple[float, float, float]:
        """Return loss, top-1 and top-5 accuracy on the test images."""
        sums = Sums(self.fabric.device)
        self.network.eval()
        with torch.no_grad():
            for images, labels in self.test_feed:
                logits = self.network(images)
                sums.add(cross_entropy(logits, labels), logits, labels)
        return sums.means()

    def save(self) -> None:
        """Write a checkpoint."""
        content = {
            "network": self.bare.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": self.progress.state_dict(),
            "seconds": self.seconds,
        }
        self.checkpoints.save(content, self.progress.step)

    def restore(self) -> None:
        """Go to the newest whole checkpoint, if there is one."""
        content: dict[str, Any] | None = self.checkpoints.load()
        if content is not None:
            self.bare.load_state_dict(content["network"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.progress = Progress.from_state_dict(content["progress"])
            self.seconds = content["seconds"]

    def result(self) -> Result:
        """Return the figures of a finished run."""
        rows = self.progress.rows
        best, last = (
            max((row for row in rows if row.test_accuracy == row.test_accuracy), key=lambda row: row.test_accuracy),
            rows[-1],
        )
        return Result(
            last.test_accuracy,
            last.test_top5,
            best.test_accuracy,
            best.epoch,
            last.train_loss,
            self.parameters,
            self.recipe.epochs,
            self.seconds,
        )


def build(recipe: Recipe, images: data.ImageSet) -> nn.Module:
    """Return the recipe's network with initial weights that the seed alone determines, equal for all norms."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(recipe.seed, "weights"))
        return models.build(
            recipe.model,
            num_classes=images.classes,
            norm=recipe.norm,
            noise=recipe.noise,
            noise_in=recipe.noise_in,
            stages=recipe.stages,
            in_channels=images.channels,
        )
