"""Image classification: one label an image, cross-entropy, stochastic gradient descent, top-1 and top-5 accuracy."""

from __future__ import annotations

import copy
from collections.abc import Sequence
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
from calibnorm.lab.data.feed import check_augment, check_shared
from calibnorm.lab.recipes import Classification
from calibnorm.lab.tasks import confusion
from calibnorm.lab.tasks.groups import parameter_groups
from calibnorm.lab.tasks.task import Feeds, Network, Place, Tables, Task, Together
from calibnorm.report.document import Section
from calibnorm.report.measure import Measure


class Classify(Task[ImageBatch], recipes=Classification):
    """A network that tells classes of images apart.

    train_loss is the mean over the epoch's images as they were trained on, label smoothing included, and
    train_accuracy the percentage of them that the network got right while it was training (of images that are mixed, by
    the label with the greatest share). test_loss is the mean
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
        check_augment(recipe.augment, info.folder)
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
            if (pixels := self._expected(3)) is not None:
                common["pixels"] = pixels
            return Feeds(*data.folder_feeds(recipe.data, data_root, **common)[:2])
        images = data.shrink(data.load(recipe.data, data_root, train_images=recipe.train_images), size)
        if (pixels := self._expected(images.channels)) is not None:
            images = replace(images, mean=pixels[0], std=pixels[1])
        if recipe.mix is not None:
            with called(data="mix"):
                others = data.load(recipe.mix, data_root)
                common |= {"mix": others if recipe.image_size is None else data.shrink(others, recipe.image_size)}
            common |= {"mix_main": recipe.mix_main, "mix_others": recipe.mix_others}
        return Feeds(data.train_feed(images, **common), data.test_feed(images, batch_size=batch_size, **place))

    def _expected(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Return mean and std of each channel that the recipe's trained weights expect; None where any will do."""
        pixels = None if self.recipe.weights is None else models.expected_pixels(self.recipe.model)
        return None if pixels is None else ((pixels[0],) * channels, (pixels[1],) * channels)

    def beside(self, feeds: Feeds[ImageBatch]) -> dict[str, Any]:
        assert isinstance(feeds.train, ImageFeed)
        return {"pixels": feeds.train.pixels.to_dict()}

    def network(self, feeds: Feeds[ImageBatch]) -> nn.Module:
        recipe, train = self.recipe, feeds.train
        assert isinstance(train, ImageFeed)
        return blank(recipe, train.classes, train.channels, weights=recipe.weights)

    def blank(self, feeds: Feeds[ImageBatch]) -> nn.Module:
        assert isinstance(feeds.train, ImageFeed)
        return blank(self.recipe, feeds.train.classes, feeds.train.channels)

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
        if recipe.image_size is not None:  # a set's own size is what it is
            check_size(network, images[:1], recipe.image_size)
        known = int(labels.min()) >= 0 and int(labels.max()) < train.classes
        recipe.require("data", known, f"a label {int(labels.max())} is not among {train.classes} classes")

    def read(
        self, network: nn.Module, feeds: Feeds[ImageBatch], outputs: Sequence[str]
    ) -> tuple[list[Section], Tables]:
        counts = confusion.counted(network, feeds.test, len(outputs))
        return confusion.sections(counts, outputs), confusion.tables(counts, outputs)

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        recipe, groups = self.recipe, parameter_groups(self.recipe, network)
        return torch.optim.SGD(groups, recipe.learning_rate, recipe.momentum, nesterov=recipe.nesterov)

    def loss(self, network: Network, batch: ImageBatch) -> tuple[Tensor, Tensor]:
        images, labels = batch
        if self.recipe.mixup or self.recipe.cutmix:
            images, shares = mixed(images, self.recipe.mixup, self.recipe.cutmix)
            logits = network(images)
            targets = shares @ F.one_hot(labels, logits.shape[1]).float()
            loss = cross_entropy(logits, targets, self.recipe.label_smoothing)
            return loss, sums(loss, logits, targets.argmax(1))
        logits = network(images)
        loss = cross_entropy(logits, labels, self.recipe.label_smoothing)
        return loss, sums(loss, logits, labels)

    def train_figures(self, sums: Tensor) -> dict[str, float]:
        loss, accuracy, _ = means(sums)
        return {"train_loss": loss, "train_accuracy": accuracy}

    def meter(self, device: torch.device) -> Accuracy:
        return Accuracy(device)


@torch.no_grad()
def check_size(network: nn.Module, image: Tensor, size: int) -> None:
    """Refuse images of which nothing is left before a network's last layers: a plane of one pixel is halved in them.

    Args:
        network: It is left as it is.
        image: Of the size (1, channels, size, size).
        size: Pixels a side, as they were asked for.

    Raises:
        UsageError: The images are too small; the text has a size that is not.
    """
    halved = list[str]()
    copied, device = copy.deepcopy(network).eval(), next(network.parameters()).device

    def look(name: str, layer: nn.Module, args: tuple[Any, ...]) -> None:
        steps: Any = getattr(layer, "stride", None) or 1
        plane = isinstance(args[0], Tensor) and args[0].ndim == 4 and max(args[0].shape[2:]) == 1
        if plane and (max(steps) if isinstance(steps, tuple) else steps) > 1:
            halved.append(name)

    def lost(size: int) -> str | None:
        halved.clear()
        copied(F.interpolate(image.to(device), size=size))
        return next(iter(halved), None)

    for name, layer in copied.named_modules():
        layer.register_forward_pre_hook(partial(look, name))
    if (first := lost(size)) is not None:
        enough = next(each for times in range(1, 16) if lost(each := size << times) is None)
        reason = f"is too small: the network would halve a plane of one pixel ({first}); choose a larger one, such as "
        raise UsageError(Setting("image_size", size), f"{reason}{enough}")


def blank(recipe: Classification, classes: int, channels: int, weights: str | None = None) -> nn.Module:
    """Return the network of a recipe, for weights that come afterwards where none are named."""
    names = ("norm", "noise", "noise_in", "stages")
    norms: dict[str, Any] = {name: getattr(recipe, name) for name in names}
    trained = recipe.weights is not None
    return models.build(
        recipe.model, num_classes=classes, in_channels=channels, weights=weights, trained=trained, **norms
    )


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


def mixed(images: Tensor, mixup: float, cutmix: float) -> tuple[Tensor, Tensor]:
    """Return a batch whose images torchvision has mixed in pairs; random numbers are torch's, seeded at every step.

    Args:
        images: (B, C, H, W).
        mixup: What Beta(a, a) has for MixUp; 0 is not.
        cutmix: The same for CutMix; where there are both, one of them is drawn.

    Returns:
        The mixed images; and how much of each image of before is in them, (B, B), whose rows add up to 1.
    """
    from torchvision.transforms import v2

    count = len(images)
    ways = [way(alpha=alpha, num_classes=count) for way, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix)) if alpha > 0]
    way = ways[int(torch.randint(len(ways), ()))] if len(ways) > 1 else ways[0]
    found: tuple[Tensor, Tensor] = way(images, torch.arange(count, device=images.device))
    return found


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the mean cross-entropy in float32, whatever the network's arithmetic; labels may be probabilities."""
    return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)


@torch.no_grad()
def sums(loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Return a batch's sums of losses, of hits and of hits among the first five, and its number of images.

    They are in float64 on the batch's device, so that no step waits for them.

    Args:
        loss: The batch's mean loss.
        logits: Its scores (B, classes).
        labels: Its labels (B,); of mixed images, those that have the greatest share.
    """
    top = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    images = loss.new_full((), len(labels), dtype=torch.float64)  # made on the device: a copy would wait for it
    return torch.stack([loss.double() * images, top[:, 0].double().sum(), top.double().sum(), images])


def means(sums: Tensor) -> tuple[float, float, float]:
    """Return the mean loss and the top-1 and top-5 accuracy in percent; waits for the device."""
    loss, top1, top5, images = sums.tolist()
    return loss / images, 100 * top1 / images, 100 * top5 / images
