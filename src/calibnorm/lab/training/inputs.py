"""The batches that a recipe asks for, checked against its network before anything is trained."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import nn

from calibnorm.errors import UsageError
from calibnorm.lab import data, models
from calibnorm.lab.data.workers import readers
from calibnorm.lab.recipes import Recipe
from calibnorm.lab.training.machine import Accelerator, check_compiler, check_precision, choose
from calibnorm.nn import CalibratedNorm

if TYPE_CHECKING:
    from lightning.fabric import Fabric


@dataclass(frozen=True)
class Inputs:
    """Feeds, and what a network must fit.

    Args:
        train: Batches to learn from.
        test: Batches of the test images.
    """

    train: data.Feed
    test: data.Feed

    @property
    def classes(self) -> int:
        """Scores that the network must give; mixed sets count together."""
        return self.train.classes

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self.train.channels

    def close(self) -> None:
        """End the worker processes of folder sets."""
        self.train.close()
        self.test.close()


def check(recipe: Recipe) -> None:
    """Refuse what can be refused without reading an image or building a network.

    Raises:
        UsageError: A text that names no network, norm, stage or data set, or images that do not fit the network.
    """
    info = data.info(recipe.data)
    models.check(recipe.model, norm=recipe.norm, stages=recipe.stages, in_channels=info.channels)
    if recipe.mix is not None and (info.folder or data.info(recipe.mix).folder):
        raise UsageError(f"--mix {recipe.mix}: sets in memory can be mixed, not folders of pictures")


def check_machine(recipe: Recipe, accelerator: Accelerator) -> None:
    """Refuse what this machine cannot do, without starting a process; seconds with ``recipe.compile``, else at once.

    Args:
        recipe: The settings; its precision and its compilation are looked at.
        accelerator: "cpu", "cuda" or "auto".

    Raises:
        UsageError: There is no GPU, it or the CPU has not the precision, or torch.compile does not work here.
    """
    kind = choose(accelerator)
    check_precision(kind, recipe.precision)
    if recipe.compile:
        check_compiler(kind)


def load(recipe: Recipe, data_root: Path, fabric: Fabric, workers: int | None = None) -> Inputs:
    """Return a process's feeds.

    Args:
        recipe: The settings.
        data_root: Where data sets lie.
        fabric: Device and processes.
        workers: Processes that read pictures, for folder sets; by default this process's part of the cores, at most 8.

    Raises:
        UsageError: Images are missing, or the batches cannot be made of them.
    """
    if workers is None:
        # Of the strategies for several processes, each has this; that for one process has not.
        workers = readers(getattr(fabric.strategy, "num_processes", 1))
    place = Place(device=fabric.device, rank=fabric.global_rank, world=fabric.world_size)
    return feeds(recipe, data_root, place, workers)


class Place(TypedDict):
    """What all feeds of a process are told."""

    device: torch.device
    rank: int
    world: int


def feeds(
    recipe: Recipe,
    data_root: Path,
    place: Place,
    workers: int | None = None,
    read: Callable[..., data.ImageSet] | None = None,
) -> Inputs:
    """As `load`, for a process that is not one of Fabric's; ``read`` is `data.load`, or remembers what it returned."""
    read = read or data.load
    info = data.info(recipe.data)
    if info.folder:
        pictures = data.folder_feeds(
            recipe.data,
            data_root,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            augment=recipe.augment,
            size=recipe.image_size or info.size,
            train_images=recipe.train_images,
            workers=workers,
            **place,
        )
        return Inputs(pictures.train, pictures.test)
    images = _image_set(recipe, read(recipe.data, data_root, train_images=recipe.train_images))
    train = data.train_feed(
        images,
        batch_size=recipe.images_a_step,
        seed=recipe.seed,
        augment=recipe.augment,
        mix=None if recipe.mix is None else _image_set(recipe, read(recipe.mix, data_root, train_images=None)),
        mix_main=recipe.mix_main,
        mix_others=recipe.mix_others,
        **place,
    )
    return Inputs(train, data.test_feed(images, batch_size=recipe.images_a_step, **place))


def _image_set(recipe: Recipe, images: data.ImageSet) -> data.ImageSet:
    return images if recipe.image_size is None else data.shrink(images, recipe.image_size)


def new_network(recipe: Recipe, classes: int, channels: int) -> nn.Module:
    """Return a recipe's network; its weights come from torch's global generator, and lie on torch's default device.

    Raises:
        UsageError: Its name, its norm or its stage is not known, or it does not take such images.
    """
    return models.build(
        recipe.model,
        num_classes=classes,
        norm=recipe.norm,
        noise=recipe.noise,
        noise_in=recipe.noise_in,
        stages=recipe.stages,
        in_channels=channels,
    )


def try_out(recipe: Recipe, network: nn.Module, inputs: Inputs, processes: int = 1) -> None:
    """Send a few images through a copy of the network, as training will.

    Raises:
        UsageError: It does not take them, its scores are not those of the classes, or its statistics cannot be those of
            so many processes.
    """
    ghosts = (m for m in network.modules() if isinstance(m, CalibratedNorm) and m.method.ghost_size is not None)
    if processes > 1 and recipe.sync_statistics and any(ghosts):
        raise UsageError(
            f"--norm {recipe.norm}: ghost batches are small on purpose, and statistics of {processes} processes are "
            "not; add --no-sync-statistics, and each process has ghost batches of its own"
        )
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
