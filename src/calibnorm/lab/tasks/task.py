"""The seam: what a task tells the loop, and nothing else in `training` or `experiments` mentions what is learned."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypedDict, TypeVar

import torch
from torch import Tensor, nn

from calibnorm.report.measure import Measure

Batch = TypeVar("Batch")
Taken = TypeVar("Taken", contravariant=True)
Given = TypeVar("Given", covariant=True)


class Place(TypedDict):
    """Where a process makes its batches."""

    device: torch.device
    rank: int
    world: int


class Feed(Protocol[Given]):
    """Batches of a set, in an order that the seed and the epoch alone determine."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Given]: ...

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch, from 0."""

    def state_dict(self) -> dict[str, Any]:
        """Return where in the epoch the feed is."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where `state_dict` was."""

    def close(self) -> None:
        """End processes that read for it."""


@dataclass(frozen=True)
class Feeds(Generic[Batch]):
    """What a run reads: batches to learn from, and batches of the test images."""

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
        """Return the values of all processes, in their order."""


class Meter(Protocol[Taken]):
    """Evaluates a network on the test images."""

    def add(self, network: Callable[..., Any], batch: Taken) -> None:
        """Take in a batch; the network is in evaluation mode, without gradients, under the run's precision."""

    def figures(self, together: Together) -> dict[str, float]:
        """Return the figures of all batches of all processes; every process calls it."""


class Task(Protocol[Batch]):
    """What is learned, of one recipe.

    Attributes:
        measures: Of every figure, in the order of metrics.csv; those that begin with "train_" are the epoch's own,
            those that begin with "test_" the meter's.
        headline: The one of them that compares runs.
    """

    measures: tuple[Measure, ...]
    headline: Measure

    def check(self) -> None:
        """Refuse what cannot be, before anything is read.

        Raises:
            UsageError: The setting that cannot be used is named.
        """

    def feeds(self, data_root: Path, place: Place, workers: int | None) -> Feeds[Batch]:
        """Return a process's batches."""

    def network(self, feeds: Feeds[Batch]) -> nn.Module:
        """Return the network; its weights come from torch's global generator and lie on torch's default device."""

    def try_out(self, network: nn.Module, feeds: Feeds[Batch]) -> None:
        """Send a few images through a copy of the network, as training will, and refuse what does not fit."""

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer of the network's parameters."""

    def loss(self, network: Callable[..., Any], batch: Batch) -> tuple[Tensor, Tensor]:
        """Return a batch's loss () and sums: a float64 vector that adds up over batches and processes."""

    def train_figures(self, sums: Tensor) -> dict[str, float]:
        """Return the epoch's own figures of the sums of its batches."""

    def meter(self, device: torch.device) -> Meter[Batch]:
        """Return what evaluates the network."""
