"""The network of a finished run, read from its folder, and what it comes to on the test images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from calibnorm.errors import UsageError
from calibnorm.lab import tasks
from calibnorm.lab.tasks import Feeds, Task
from calibnorm.lab.training import same_data
from calibnorm.lab.training.contents import WEIGHTS, read, refused
from calibnorm.lab.training.folder import CONFIG, LAST, read_recipe
from calibnorm.lab.training.processes import Processes

REMEDY = "so the run cannot be tested; remove its folder, and train it again"


@dataclass(frozen=True)
class Trained:
    """A network with the weights that its run ended with, on the CPU, in evaluation mode.

    Args:
        task: What it has learned.
        feeds: What it was trained and tested on.
        network: The network.
        outputs: What each output of the network stands for; empty where the task does not say.
    """

    task: Task[Any]
    feeds: Feeds[Any]
    network: nn.Module
    outputs: tuple[str, ...] = ()

    @torch.no_grad()
    def headline(self) -> float:
        """Return the figure that compares runs, of the network as it is now."""
        meter = self.task.meter(torch.device("cpu"))
        for batch in self.feeds.test:
            meter.add(self.network, batch)
        return meter.figures(Processes(1))[self.task.headline.name]


@contextmanager
def trained(folder: Path, data_root: Path) -> Iterator[Trained]:
    """Open a finished run.

    Args:
        folder: The run's.
        data_root: Where data sets lie.

    Raises:
        UsageError: The run's files are not there or not whole, or its images are missing, or others than those that it
            was trained on.
    """
    recipe = read_recipe(folder)
    if recipe is None:
        raise UsageError(f"{folder / CONFIG}: is missing or damaged; remove {folder}")
    task = tasks.of(recipe)
    feeds = task.feeds(data_root, tasks.Place(device=torch.device("cpu"), rank=0, world=1), None)
    contents = feeds.train.contents
    try:
        same_data.check(folder, contents, "; put it back as it was")
        network = task.blank(feeds)
        try:
            data = (folder / LAST).read_bytes()
        except OSError as error:
            raise UsageError(f"{folder / LAST}: is missing or damaged ({error.strerror}); {REMEDY}") from error
        content = read(folder / LAST, data, WEIGHTS, REMEDY)
        with refused(folder / LAST, "does not fit the run's config.json", REMEDY):
            network.load_state_dict(content["network"])
        yield Trained(task, feeds, network.eval(), () if contents is None else contents.outputs)
    finally:
        feeds.close()
