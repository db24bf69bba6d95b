"""What can be found wrong before anything is trained."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import torch
from torch import nn

from calibnorm.lab import data
from calibnorm.lab.recipes import Recipe
from calibnorm.lab.training import inputs
from calibnorm.lab.training.machine import Accelerator

Reader: TypeAlias = "functools._lru_cache_wrapper[data.ImageSet]"


def check(
    recipes: Iterable[Recipe],
    data_root: Path,
    accelerator: Accelerator,
    read: Reader | None = None,
) -> None:
    """Find out what training would refuse: ask the machine, read every data set, and build every network.

    Every network with plain BatchNorm is sent a few images; with its own norm it is built without memory.

    Args:
        recipes: What will be trained.
        data_root: Where data sets lie.
        accelerator: "cpu", "cuda" or "auto".
        read: `reader`'s, where the caller has read some of the sets.

    Raises:
        UsageError: There is no such device, or it has not the precision; a data set is missing or does not fit the
            settings; a network, norm or stage is not known. The text names it.
    """
    read = read or reader()
    found: dict[Recipe, inputs.Inputs] = {}
    built: set[Recipe] = set()
    able: set[tuple[str, bool]] = set()
    with ExitStack() as opened:
        for recipe in recipes:
            inputs.check(recipe)
            if (recipe.precision, recipe.compile) not in able:
                inputs.check_machine(recipe, accelerator)
                able.add((recipe.precision, recipe.compile))
            network = replace(recipe, seed=0)
            images = replace(network, model="", norm="bn", noise=None, stages="all")
            if images not in found:
                place = inputs.Place(device=torch.device("cpu"), rank=0, world=1)
                found[images] = inputs.feeds(recipe, data_root, place, read=read)
                opened.callback(found[images].close)
            plain = replace(images, model=network.model)
            # Folder sets would start processes to read their pictures, whose size the recipe sets.
            if plain not in built and not data.info(recipe.data).folder:
                inputs.try_out(plain, build(plain, found[images], "cpu"), found[images])
            built.add(plain)
            if network not in built:
                build(network, found[images], "meta")
                built.add(network)


def reader() -> Reader:
    """Return `data.load` with a memory, as many recipes of a grid have one set: asked alike, it reads once."""
    return functools.cache(data.load)


def build(recipe: Recipe, images: inputs.Inputs, device: str) -> nn.Module:
    """Build a recipe's network; on the device "meta" it takes no memory.

    Raises:
        UsageError: Its name, its norm or its stage is not known, or it does not take such images.
    """
    with torch.device(device), torch.random.fork_rng(devices=[]):
        return inputs.new_network(recipe, images.classes, images.channels)
