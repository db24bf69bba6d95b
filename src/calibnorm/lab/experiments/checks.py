"""What can be found wrong before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from calibnorm.lab import data, models
from calibnorm.lab.recipes import Recipe


def check(recipes: Iterable[Recipe], data_root: Path) -> None:
    """Read every data set, make its batches possible, and build every network without memory.

    Raises:
        UsageError: A data set is missing or does not fit the settings, or a network, norm or stage is not known; the
            text names it.
    """
    classes: dict[Recipe, int] = {}
    built: set[Recipe] = set()
    for recipe in recipes:
        network = replace(recipe, seed=0)
        images = replace(network, model="", norm="", noise=None, stages="all")
        if images not in classes:
            classes[images] = read(recipe, data_root)
        if network not in built:
            build(network, classes[images])
            built.add(network)


def read(recipe: Recipe, data_root: Path) -> int:
    """Return how many scores a network must give for the images of a recipe, which are read.

    Raises:
        UsageError: They are missing, or the batches cannot be made of them.
    """
    info = data.info(recipe.data)
    if info.folder:
        feeds = data.imagenet(
            data_root,
            batch_size=recipe.batch_size,
            seed=0,
            device="cpu",
            augment=recipe.augment,
            size=recipe.image_size or info.size,
            train_images=recipe.train_images,
        )
        feeds.train.close()
        feeds.test.close()
        return feeds.train.classes
    feed = data.train_feed(
        read_set(recipe.data, recipe, data_root, recipe.train_images),
        batch_size=recipe.images_a_step,
        seed=0,
        device="cpu",
        augment=recipe.augment,
        mix=None if recipe.mix is None else read_set(recipe.mix, recipe, data_root, None),
        mix_main=recipe.mix_main,
        mix_others=recipe.mix_others,
    )
    return feed.classes


def read_set(name: str, recipe: Recipe, data_root: Path, train_images: int | None) -> data.ImageSet:
    """Return a set in memory, at the recipe's size."""
    images = data.load(name, data_root, train_images=train_images)
    return images if recipe.image_size is None else data.shrink(images, recipe.image_size)


def build(recipe: Recipe, classes: int) -> None:
    """Build a recipe's network without memory.

    Raises:
        UsageError: Its name, its norm or its stage is not known, or it does not take such images.
    """
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        models.build(
            recipe.model,
            num_classes=classes,
            norm=recipe.norm,
            noise=recipe.noise,
            noise_in=recipe.noise_in,
            stages=recipe.stages,
            in_channels=data.info(recipe.data).channels,
        )
