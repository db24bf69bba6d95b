"""The batches that a recipe asks for, checked against its network before anything is trained."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.fabric import Fabric
from torch import nn

from calibnorm.lab import data, models
from calibnorm.lab.data.shrinking import shrink, shrink_factor
from calibnorm.lab.errors import UsageError
from calibnorm.lab.recipes import Recipe


@dataclass(frozen=True)
class Inputs:
    """Feeds, and what a network must fit.

    Args:
        train: Batches to learn from.
        test: Batches of the test images.
        classes: Labels of the training batches.
        channels: Of the images.
    """

    train: data.Feed
    test: data.Feed
    classes: int
    channels: int

    def close(self) -> None:
        """End the worker processes of folder sets."""
        for feed in (self.train, self.test):
            if hasattr(feed, "close"):
                feed.close()


def check(recipe: Recipe) -> None:
    """Refuse what can be refused without reading an image or building a network.

    Raises:
        UsageError: A text that names no norm or no data set, or sizes that do not fit the data set.
    """
    models.parse_norm(recipe.norm)
    info = data.info(recipe.data)
    if recipe.image_size is not None and not info.folder:
        shrink_factor(recipe.data, info.size, recipe.image_size)
    if recipe.mix is not None:
        others = data.info(recipe.mix)
        if info.folder or others.folder:
            raise UsageError(f"--mix {recipe.mix}: mixes sets in memory, not folders of pictures")


def load(recipe: Recipe, data_root: Path, fabric: Fabric) -> Inputs:
    """Return a process's feeds.

    Raises:
        UsageError: Images are missing, or the batches cannot be made of them.
    """
    images = _image_set(recipe, recipe.data, data_root, recipe.train_images)
    place = {"device": fabric.device, "rank": fabric.global_rank, "world": fabric.world_size}
    train = data.train_feed(images, batch_size=recipe.batch_size, seed=recipe.seed, augment=recipe.augment, **place)
    test = data.test_feed(images, batch_size=recipe.batch_size, **place)
    return Inputs(train, test, images.classes, images.channels)


def _image_set(recipe: Recipe, name: str, data_root: Path, train_images: int | None) -> data.ImageSet:
    images = data.load(name, data_root, train_images=train_images)
    return images if recipe.image_size is None else shrink(images, recipe.image_size)


def try_out(recipe: Recipe, network: nn.Module, inputs: Inputs) -> None:
    """Send a few images through a copy of the network, as training will.

    Raises:
        UsageError: It does not take them, or its scores are not those of the classes.
    """
    images, labels = next(iter(inputs.test))
    count = min(2, recipe.batch_size, len(images))
    shape = " x ".join(map(str, images.shape[1:]))
    try:
        scores = copy.deepcopy(network).train()(images[:count].to(next(network.parameters()).device))
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"--model {recipe.model}: does not take images of {shape} ({recipe.data}): {reason}"
        ) from error
    if not isinstance(scores, torch.Tensor) or scores.shape != (count, inputs.classes):
        raise UsageError(f"--model {recipe.model}: gives no scores of {inputs.classes} classes for {recipe.data}")
    if int(labels.min()) < 0 or int(labels.max()) >= inputs.classes:
        raise UsageError(f"--data {recipe.data}: a label {int(labels.max())} is not among {inputs.classes} classes")
