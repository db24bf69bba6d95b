"""What can be found wrong before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from calibnorm.lab import data, models
from calibnorm.lab.errors import UsageError
from calibnorm.lab.recipes import Recipe


def check(recipes: Iterable[Recipe], data_root: Path) -> None:
    """Build every network without memory, and read every data set.

    Raises:
        UsageError: A network, norm or stage is not known, a data set is missing, or a batch is larger than one; the
            text names it.
    """
    networks = {replace(r, seed=0, epochs=r.warmup_epochs + 1, milestones=()): r for r in recipes}
    for recipe in networks:
        info = data.info(recipe.data)
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            models.build(
                recipe.model,
                num_classes=info.classes,
                norm=recipe.norm,
                noise=recipe.noise,
                noise_in=recipe.noise_in,
                stages=recipe.stages,
                in_channels=info.channels,
            )
    for name, train_images, batch_size in sorted(
        {(r.data, r.train_images, r.mix_main if r.mix else r.batch_size) for r in networks}
        | {(r.mix, None, r.mix_others) for r in networks if r.mix},
        key=str,
    ):
        check_data(name, train_images, batch_size, data_root)


def check_data(name: str, train_images: int | None, batch_size: int, data_root: Path) -> None:
    """Read one data set.

    Raises:
        UsageError: It is missing or too small.
    """
    count = len(data.load(name, data_root, train_images=train_images).train)
    if batch_size > count:
        raise UsageError(f"--batch-size {batch_size}: {name} has {count} training images")
