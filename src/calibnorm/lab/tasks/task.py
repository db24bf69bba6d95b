"""The seam: what a task tells the loop. Nothing else in `training` or `experiments` mentions what is learned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypedDict, TypeVar

import torch
from torch import Tensor, nn

from calibnorm.lab.data.feed import Feed, check_shared
from calibnorm.lab.recipes import Recipe
from calibnorm.report.document import Section
from calibnorm.report.measure import Measure

Batch = TypeVar("Batch")
Taken = TypeVar("Taken", contravariant=True)
Tables = Mapping[str, Sequence[Mapping[str, Any]]]
"""The lines of files, by the file's name."""
Network = Callable[..., Any]
"""A network as it is trained or tested: it is called, and nothing else of it is used, since processes, precision or a
compiler may stand around it. What it returns may be in half precision; a loss is better computed in float32."""


class Place(TypedDict):
    """Where a process makes its batches: its device, its number, and how many processes share each batch."""

    device: torch.device
    rank: int
    world: int


@dataclass(frozen=True)
class Feeds(Generic[Batch]):
    """What a run reads: batches to learn from, as many in every process; and test images, each in one process."""

    train: Feed[Batch]
    test: Feed[Batch]

    def close(self) -> None:
        """End processes that read for either."""
        self.train.close()
        self.test.close()


class Together(Protocol):
    """What the processes of a run know together; with one process, what it knows."""

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over the processes."""

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, in their order: any objects, such as a detector's boxes."""


class Meter(Protocol[Taken]):
    """Evaluates a network on the test images."""

    def add(self, network: Network, batch: Taken) -> None:
        """Take in a batch; the network is in evaluation mode, without gradients, and has the run's precision."""

    def figures(self, together: Together) -> dict[str, float]:
        """Return the figures of all batches of all processes, by the names of measures; every process calls it."""


class Task(ABC, Generic[Batch]):
    """What is learned, of one `recipe`: its settings.

    A subclass names the recipes that it is for, ``class Angles(Task[Batch], recipes=AngleRecipe)``, and annotates
    `recipe` with them. Where both are outside this package, they stand in one module, or that of the recipes imports
    the other: a process that is given a recipe imports the recipe's module.

    Attributes:
        measures: All figures of a run, in the order of metrics.csv. The names of those of an epoch's training begin
            with "train_", the names of those of a test with "test_".
        headline: The measure among them that compares runs, and that chooses the best epoch.
    """

    measures: tuple[Measure, ...]
    headline: Measure
    kinds: ClassVar[dict[type[Recipe], type[Task[Any]]]] = {}

    def __init__(self, recipe: Any) -> None:
        self.recipe = recipe

    def __init_subclass__(cls, recipes: type[Recipe] | None = None) -> None:
        """Remember which recipes are whose; a class that others complete names none."""
        if recipes is not None:
            Task.kinds[recipes] = cls

    def check(self) -> None:
        """Raise UsageError, with its name, for a setting that cannot be used, before anything is read."""

    def check_processes(self, count: int) -> None:
        """Raise UsageError for a batch that so many processes cannot share, before they are started."""
        check_shared("batch_size", self.recipe.batch_size, count)

    @abstractmethod
    def feeds(self, data_root: Path, place: Place, workers: int | None) -> Feeds[Batch]:
        """Return a process's batches.

        Args:
            data_root: Where data sets lie.
            place: Device and processes.
            workers: Processes that read for each feed, where the task has such; None is for the task to choose.

        Raises:
            UsageError: Images are missing, or the batches cannot be made of them.
        """

    @abstractmethod
    def network(self, feeds: Feeds[Batch]) -> nn.Module:
        """Return the network, which must fit the feeds.

        Its random weights come from torch's global generator, and lie on torch's default device, which may be "meta". A
        task that begins with trained weights, from a file that its recipe names, loads them here.

        Raises:
            UsageError: Its name, its norm or its stage is not known, or it does not fit.
        """

    def blank(self, feeds: Feeds[Batch]) -> nn.Module:
        """Return the network for weights that are put in afterwards: without those that its recipe names, if any."""
        return self.network(feeds)

    def try_out(self, network: nn.Module, feeds: Feeds[Batch]) -> None:
        """Send a few images through a copy of the network; raise UsageError where training would not be content."""

    @abstractmethod
    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer of the network's parameters.

        The loop sets the learning rate of each step; a group of parameters with an entry "lr_scale" has so many times
        that rate.
        """

    @abstractmethod
    def loss(self, network: Network, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return what a step makes smaller, and what is counted of its batch.

        Returns:
            The loss () with its history; and a vector in float64, without history and on the loss's device, that adds
            up over batches and processes, such as several losses times the images, and the images.
        """

    @abstractmethod
    def train_figures(self, sums: Tensor) -> dict[str, float]:
        """Return an epoch's own figures, by the names of measures, of the sum of what `loss` has counted."""

    @abstractmethod
    def meter(self, device: torch.device) -> Meter[Batch]:
        """Return what evaluates the network once."""

    def beside(self, feeds: Feeds[Batch]) -> dict[str, Any]:
        """Return what best.pt and last.pt say besides weights, so that they can be used without the data; plain values.

        What it returns must be what ``torch.load(..., weights_only=True)`` reads.
        """
        return {}

    def read(self, network: nn.Module, feeds: Feeds[Batch], outputs: Sequence[str]) -> tuple[list[Section], Tables]:
        """Return what a run's page says of a trained network, and CSV files beside it by name; by default nothing.

        Args:
            network: In evaluation mode, on the CPU.
            feeds: What it was trained and tested on.
            outputs: What each output of the network stands for.
        """
        return [], {}

    def preview(self, network: Network, batch: Batch) -> Tensor | None:
        """Return a picture (3, H, W) in uint8 of what the network does with a batch of the test; None is nothing.

        Args:
            network: In evaluation mode, without gradients.
            batch: The first of the test.
        """
        return None
