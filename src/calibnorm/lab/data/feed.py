"""Batches of a set that is in memory: which images, in which order, cropped how is a function of integers alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from calibnorm.lab.data.augment import Shifts, crop_flip, standardize
from calibnorm.lab.data.seeding import generator
from calibnorm.lab.data.sets import ImageSet, Split
from calibnorm.lab.errors import UsageError

Augment = Literal["crop_flip", "crop", "none"]
AUGMENTS = ("crop_flip", "crop", "none")


class Feed(ABC):
    """One epoch's batches: images (B, C, H, W) in float32, standardized, and labels (B,) in int64, on the device.

    An epoch can be stopped after any batch and gone on with: what ``state_dict`` returned there, loaded into a new feed
    made with the same arguments, gives exactly the batches that were still to come.
    """

    def __init__(self) -> None:
        self._epoch = 0
        self._next_batch = 0
        self._start = 0  # where the next iteration begins: not 0 only after load_state_dict

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of batches in an epoch."""

    @abstractmethod
    def batches(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the epoch's batches from number ``start`` on."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; another one than before starts at its first batch."""
        if epoch != self._epoch:
            self._epoch, self._next_batch, self._start = epoch, 0, 0

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the number of its batches that were handed out.

        A consumer that fetches ahead has seen fewer: it must put its own count into ``next_batch``.
        """
        return {"epoch": self._epoch, "next_batch": self._next_batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration begin where the state was taken; iterations after that are whole."""
        self._epoch, self._next_batch = state["epoch"], state["next_batch"]
        self._start = self._next_batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        start, self._start = self._start, 0
        self._next_batch = start
        for batch in self.batches(start):
            self._next_batch += 1
            yield batch


class _Stream:
    """A set's shuffled images, so many a batch; starts over, in another order, when an epoch needs more than it has."""

    def __init__(self, images: ImageSet, per_batch: int, seed: int, device: torch.device, augment: Augment) -> None:
        self.per_batch = per_batch
        self._images = images.train.images.to(device)
        self._labels = images.train.labels.to(device)
        self._statistics = _statistics(images, device)
        self._seed, self._augment = seed, augment
        self._order, self._shifts = torch.empty(0), Shifts(*torch.empty(3, 0))

    def start(self, epoch: int, batches: int, purpose: str) -> None:
        """Draw an epoch's order and crops: 50000 images take a millisecond or two."""
        count = batches * self.per_batch
        passes = -(-count // len(self._labels))
        draw = generator(f"{purpose} order", self._seed, epoch)
        order = torch.cat([torch.randperm(len(self._labels), generator=draw) for _ in range(passes)])[:count]
        draw = generator(f"{purpose} crops", self._seed, epoch)
        shifts = Shifts.draw(count, draw, flip=self._augment == "crop_flip")
        self._order, self._shifts = order.to(self._labels.device), shifts.to(self._labels.device)

    def batch(self, number: int, rank: int, world: int) -> tuple[Tensor, Tensor]:
        """Return a rank's share of a batch."""
        share = self.per_batch // world
        first = number * self.per_batch + rank * share
        rows = self._order[first : first + share]
        images = self._images[rows]
        if self._augment != "none":
            images = crop_flip(images, self._shifts[first : first + share])
        return standardize(images, *self._statistics), self._labels[rows]


class _TrainFeed(Feed):
    def __init__(self, stream: _Stream, batches: int, rank: int, world: int) -> None:
        super().__init__()
        self._stream, self._batches, self._rank, self._world = stream, batches, rank, world

    def __len__(self) -> int:
        return self._batches

    def batches(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        self._stream.start(self._epoch, self._batches, "main")
        for number in range(start, self._batches):
            yield self._stream.batch(number, self._rank, self._world)


class _TestFeed(Feed):
    def __init__(self, split: Split, statistics: tuple[Tensor, Tensor], batch_size: int) -> None:
        super().__init__()
        self._split, self._statistics, self._batch_size = split, statistics, batch_size

    def __len__(self) -> int:
        return -(-len(self._split) // self._batch_size)

    def batches(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        for first in range(start * self._batch_size, len(self._split), self._batch_size):
            rows = slice(first, first + self._batch_size)
            yield standardize(self._split.images[rows], *self._statistics), self._split.labels[rows]


def train_feed(
    images: ImageSet,
    *,
    batch_size: int,
    seed: int,
    device: torch.device | str,
    augment: Augment = "crop_flip",
    rank: int = 0,
    world: int = 1,
) -> Feed:
    """Return the training batches: whole ones alone, in a new order in each epoch.

    The images that are left over when the set does not divide are others in each epoch. So every step has the same
    batch size: no batch of a few images enters the running statistics, processes have equal shares (the mean of their
    gradients is the batch's), and torch.compile sees one shape. (The papers' code keeps the last, smaller batch: one
    step an epoch more on CIFAR.)

    Args:
        images: From :func:`calibnorm.lab.data.load`.
        batch_size: Images a step of all processes together.
        seed: Of the order, crops and flips, together with the epoch.
        device: Where the images are put, as bytes, once, and where the batches are made.
        augment: "crop_flip": random crop with 4 pixels of padding and horizontal flip; "crop": without flips; "none".
        rank: This process's number.
        world: Processes that share each batch; their parts are disjoint, and together the batch of one process.

    Raises:
        UsageError: A batch larger than the set, or one that the processes cannot share equally.
    """
    if not 0 < batch_size <= len(images.train):
        raise UsageError(f"batch_size={batch_size}: choose between 1 and the {len(images.train)} training images")
    if batch_size % world:
        raise UsageError(f"batch_size={batch_size}: {world} processes cannot share it equally; choose a multiple")
    if augment not in AUGMENTS:
        raise UsageError(f"augment={augment}: unknown; choose one of {', '.join(AUGMENTS)}")
    stream = _Stream(images, batch_size, seed, torch.device(device), augment)
    return _TrainFeed(stream, len(images.train) // batch_size, rank, world)


def test_feed(
    images: ImageSet,
    *,
    batch_size: int,
    device: torch.device | str,
    rank: int = 0,  # noqa: PT028 (no test of pytest's)
    world: int = 1,  # noqa: PT028
) -> Feed:
    """Return the test images in the set's order, each once over all processes; the last batch may be smaller.

    Args:
        images: From :func:`calibnorm.lab.data.load`; standardized as its training images are.
        batch_size: Images a batch of all processes together.
        device: Where the images are put, as bytes, once.
        rank: This process takes every ``world``-th image, from number ``rank`` on.
        world: Processes that share the images.
    """
    split = Split(images.test.images[rank::world].to(device), images.test.labels[rank::world].to(device))
    return _TestFeed(split, _statistics(images, torch.device(device)), max(1, batch_size // world))


test_feed.__test__ = False  # type: ignore[attr-defined]  # pytest takes the name for a test


def _statistics(images: ImageSet, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and std of the bytes, (C, 1, 1) in float32."""
    mean = torch.tensor([255 * value for value in images.mean], dtype=torch.float32, device=device)
    std = torch.tensor([255 * value for value in images.std], dtype=torch.float32, device=device)
    return mean.view(-1, 1, 1), std.view(-1, 1, 1)
