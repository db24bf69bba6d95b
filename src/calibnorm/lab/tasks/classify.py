"""Image classification: one label an image, cross-entropy, stochastic gradient descent, top-1 and top-5 accuracy."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from calibnorm import loading
from calibnorm.errors import Setting, UsageError, called
from calibnorm.lab import data, models
from calibnorm.lab.data import ImageBatch, ImageFeed
from calibnorm.lab.data.feed import check_shared
from calibnorm.lab.recipes import Classification
from calibnorm.lab.tasks.groups import parameter_groups
from calibnorm.lab.tasks.task import Feeds, Network, Place, Task, Together
from calibnorm.report.measure import Measure


class Classify(Task[ImageBatch], recipes=Classification):
    """A network that tells classes of images apart.

    train_loss is the mean over the epoch's images as they were trained on, label smoothing included, and
    train_accuracy the percentage of them that the network got right while it was training. test_loss is the mean
    cross-entropy, test_top5 the percentage of the test images whose label is among the five highest scores.
    """

    recipe: Classification

    def __init__(self, recipe: Classification) -> None:
        super().__init__(recipe)
        classes = data.info(recipe.data).classes
        chance, chance_means = 2 * 100 / classes if classes else float("nan"), "twice the accuracy of guessing"
        percent = partial(Measure, unit="%", higher_is_better=True)
        self.headline = percent("test_accuracy", chance=chance, chance_means=chance_means)
        self.measures = (
            Measure("train_loss", digits=4),
            percent("train_accuracy", in_result=False),
            Measure("test_loss", digits=4, in_result=False),
            self.headline,
            percent("test_top5", in_line=False),
        )

    def check(self) -> None:
        recipe, info = self.recipe, data.info(self.recipe.data)
        models.check(recipe.model, norm=recipe.norm, stages=recipe.stages, in_channels=info.channels)
        if recipe.mix is not None:
            with called(data="mix"):
                folders = info.folder or data.info(recipe.mix).folder
            recipe.require("mix", not folders, "sets in memory can be mixed, not folders of pictures")

    def check_processes(self, count: int) -> None:
        for name in ("batch_size",) if self.recipe.mix is None else ("mix_main", "mix_others"):
            check_shared(name, getattr(self.recipe, name), count)

    def feeds(self, data_root: Path, place: Place, workers: int | None) -> Feeds[ImageBatch]:
        recipe, info, batch_size = self.recipe, data.info(self.recipe.data), self.recipe.images_a_step
        size = recipe.image_size or info.size
        common: dict[str, Any] = {"batch_size": batch_size, "seed": recipe.seed, "augment": recipe.augment, **place}
        if info.folder:
            common |= {"size": size, "train_images": recipe.train_images, "workers": workers}
            return Feeds(*data.folder_feeds(recipe.data, data_root, **common)[:2])
        images = data.shrink(data.load(recipe.data, data_root, train_images=recipe.train_images), size)
        if recipe.weights is not None and (pixels := models.expected_pixels(recipe.model)) is not None:
            mean, std = ((value,) * images.channels for value in pixels)
            images = replace(images, mean=mean, std=std)
        if recipe.mix is not None:
            with called(data="mix"):
                others = data.load(recipe.mix, data_root)
                common |= {"mix": others if recipe.image_size is None else data.shrink(others, recipe.image_size)}
            common |= {"mix_main": recipe.mix_main, "mix_others": recipe.mix_others}
        return Feeds(data.train_feed(images, **common), data.test_feed(images, batch_size=batch_size, **place))

    def network(self, feeds: Feeds[ImageBatch]) -> nn.Module:
        recipe, train = self.recipe, feeds.train
        assert isinstance(train, ImageFeed)
        names = ("norm", "noise", "noise_in", "stages", "weights")
        norms: dict[str, Any] = {name: getattr(recipe, name) for name in names}
        return models.build(recipe.model, num_classes=train.classes, in_channels=train.channels, **norms)

    def try_out(self, network: nn.Module, feeds: Feeds[ImageBatch]) -> None:
        recipe, train = self.recipe, feeds.train
        assert isinstance(train, ImageFeed)
        images, labels = next(iter(feeds.test))
        count = min(2, recipe.batch_size, len(images))
        shape = " x ".join(map(str, images.shape[1:]))
        try:
            scores = copy.deepcopy(network).train()(images[:count].to(next(network.parameters()).device))
        except (RuntimeError, ValueError, TypeError) as error:
            reason = str(error).strip().splitlines()[0]
            if (own := loading.fault(error)) is not None:
                raise own from error
            text = f"does not take images of {shape} ({recipe.data}): {reason}"
            raise UsageError(Setting("model", recipe.model), text) from error
        fits = isinstance(scores, Tensor) and scores.shape == (count, train.classes)
        recipe.require("model", fits, f"gives no scores of {train.classes} classes for {recipe.data}")
        known = int(labels.min()) >= 0 and int(labels.max()) < train.classes
        recipe.require("data", known, f"a label {int(labels.max())} is not among {train.classes} classes")

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        recipe, groups = self.recipe, parameter_groups(self.recipe, network)
        return torch.optim.SGD(groups, recipe.learning_rate, recipe.momentum, nesterov=recipe.nesterov)

    def loss(self, network: Network, batch: ImageBatch) -> tuple[Tensor, Tensor]:
        images, labels = batch
        logits = network(images)
        loss = cross_entropy(logits, labels, self.recipe.label_smoothing)
        return loss, sums(loss, logits, labels)

    def train_figures(self, sums: Tensor) -> dict[str, float]:
        loss, accuracy, _ = means(sums)
        return {"train_loss": loss, "train_accuracy": accuracy}

    def meter(self, device: torch.device) -> Accuracy:
        return Accuracy(device)


class Accuracy:
    """Loss, top-1 and top-5 accuracy of a network on the test images.

    Args:
        device: Where the batches are.
    """

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(4, dtype=torch.float64, device=device)

    def add(self, network: Network, batch: ImageBatch) -> None:
        images, labels = batch
        logits = network(images)
        self._sums += sums(cross_entropy(logits, labels), logits, labels)

    def figures(self, together: Together) -> dict[str, float]:
        names = ("test_loss", "test_accuracy", "test_top5")
        return dict(zip(names, means(together.sum(self._sums)), strict=True))


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the mean cross-entropy in float32, whatever the network's arithmetic."""
    return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)


@torch.no_grad()
def sums(loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Return a batch's sums of losses, of hits and of hits among the first five, and its number of images.

    They are in float64 on the batch's device, so that no step waits for them.

    Args:
        loss: The batch's mean loss.
        logits: Its scores (B, classes).
        labels: Its labels (B,).
    """
    top = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    images = loss.new_full((), len(labels), dtype=torch.float64)  # made on the device: a copy would wait for it
    return torch.stack([loss.double() * images, top[:, 0].double().sum(), top.double().sum(), images])


def means(sums: Tensor) -> tuple[float, float, float]:
    """Return the mean loss and the top-1 and top-5 accuracy in percent; waits for the device."""
    loss, top1, top5, images = sums.tolist()
    return loss / images, 100 * top1 / images, 100 * top5 / images
