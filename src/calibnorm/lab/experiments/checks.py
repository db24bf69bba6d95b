"""What can be found wrong before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from calibnorm.lab import tasks
from calibnorm.lab.experiments.grid import Run
from calibnorm.lab.recipes import Recipe
from calibnorm.lab.tasks import Feeds, Place, Task
from calibnorm.lab.training import same_data
from calibnorm.lab.training.folder import sources_of
from calibnorm.lab.training.machine import Accelerator, check_machine


def check(runs: Iterable[Run], data_root: Path, accelerator: Accelerator) -> None:
    """Find out what training would refuse: ask the machine, read every data set, and build every network.

    Every network with plain BatchNorm is sent a few images, and so is one with a norm of the user's; with any other
    norm it is built without memory. Runs that are there must have been trained on the data that are there: else runs of
    different data would be compared.

    Args:
        runs: What will be trained, or is there.
        data_root: Where data sets lie.
        accelerator: "cpu", "cuda" or "auto".

    Raises:
        UsageError: There is no such device, or it has not the precision; a data set is missing or does not fit the
            settings; a network, norm or stage is not known; a run was trained on other data. The text names it.
    """
    found: dict[Recipe, Feeds[Any]] = {}
    built: set[Recipe] = set()
    able: set[tuple[str, bool]] = set()
    with ExitStack() as opened:
        for run in runs:
            recipe = run.recipe
            task = tasks.of(recipe)
            task.check()
            if (recipe.precision, recipe.compile) not in able:
                check_machine(recipe, accelerator)
                able.add((recipe.precision, recipe.compile))
            network = replace(recipe, seed=0)
            plain = replace(network, norm="bn", noise=None, stages="all")
            images = replace(plain, model="")
            if images not in found:
                found[images] = task.feeds(data_root, Place(device=torch.device("cpu"), rank=0, world=1), workers=None)
                opened.callback(found[images].close)
            same_data.check(run.folder, found[images].train.contents, "; choose another folder, or remove that run")
            if plain not in built:
                of_plain = tasks.of(plain)
                of_plain.try_out(build(of_plain, found[images], "cpu"), found[images])
                built.add(plain)
            if network not in built:
                if sources_of(recipe):  # what was loaded may fail in ways of its own
                    task.try_out(build(task, found[images], "cpu"), found[images])
                else:
                    build(task, found[images], "meta")
                built.add(network)


def build(task: Task[Any], feeds: Feeds[Any], device: str) -> nn.Module:
    """Build a task's network; on the device "meta" it takes no memory.

    Raises:
        UsageError: Its name, its norm or its stage is not known, or it does not take such images.
    """
    with torch.device(device), torch.random.fork_rng(devices=[]):
        return task.network(feeds)
