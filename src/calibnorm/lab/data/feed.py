"""What every feed of batches is, and which images of a batch belong to which process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, get_args

import torch
from torch import Tensor

from calibnorm.errors import Setting, UsageError
from calibnorm.lab.data.contents import Contents

Augment = Literal["crop_flip", "crop", "none", "randaugment", "trivialaugment"]
FOR_FOLDERS = ("randaugment", "trivialaugment")
"""Augmentations that change one picture after the other, as the processes do that read folders."""
Batch = TypeVar("Batch")
ImageBatch = tuple[Tensor, Tensor]
"""Images (B, C, H, W) in float32, standardized, and labels (B,) in int64, on the device."""


class Feed(ABC, Generic[Batch]):
    """A set's batches, in an order that the seed and the epoch alone determine.

    An epoch can be stopped after any batch and gone on with: what ``state_dict`` returned there, loaded into a new feed
    made with the same arguments, gives exactly the batches that were still to come.

    Attributes:
        contents: What the set holds, that of training and that of the test; None where the feed does not say. Of a
            run's training feed it goes into the run's folder: a run goes on with the same contents alone.
    """

    contents: Contents | None = None

    def __init__(self) -> None:
        self._epoch = 0
        self._next_batch = 0
        self._start = 0  # where the next iteration begins: not 0 only after load_state_dict

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of batches in an epoch."""

    @abstractmethod
    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """Yield an epoch's batches from number ``start`` on."""

    def close(self) -> None:
        """End worker processes, where the feed has any; an iteration after that starts new ones."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; another one than before starts at its first batch."""
        if epoch != self._epoch:
            self._epoch, self._next_batch, self._start = epoch, 0, 0

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the number of its batches that were handed out.

        A consumer that fetches ahead has worked on fewer: it must put its own count into ``next_batch``.
        """
        return {"epoch": self._epoch, "next_batch": self._next_batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration begin where the state was taken; iterations after that are whole.

        Raises:
            ValueError: The state is of an epoch with more batches.
        """
        if not 0 <= state["next_batch"] <= len(self):
            raise ValueError(f"next_batch={state['next_batch']}: an epoch of this feed has {len(self)} batches")
        self._epoch, self._next_batch = state["epoch"], state["next_batch"]
        self._start = self._next_batch

    def __iter__(self) -> Iterator[Batch]:
        start, self._start = self._start, 0
        self._next_batch = start
        for batch in self.batches(self._epoch, start):
            self._next_batch += 1
            yield batch


@dataclass(frozen=True)
class Pixels:
    """The images that a network takes, and how they are made of a picture's bytes.

    Args:
        size: Pixels a side.
        short: Pixels of a picture's short side before its centre is cut.
        mean: What is subtracted from each channel, black 0 and white 1.
        std: What it is divided by then.
    """

    size: int
    short: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def channels(self) -> int:
        """1 or 3."""
        return len(self.mean)

    def statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return mean and std of the bytes, (C, 1, 1) in float32."""
        mean, std = (
            torch.tensor([255 * value for value in values], dtype=torch.float32, device=device).view(-1, 1, 1)
            for values in (self.mean, self.std)
        )
        return mean, std

    def to_dict(self) -> dict[str, Any]:
        """Return what a file of weights holds; `from_dict` reads it back."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    @staticmethod
    def from_dict(content: Any) -> Pixels:
        """Return what `to_dict` gave; raise some error or other for something else."""
        size, short = int(content["size"]), int(content["short"])
        return Pixels(size, short, tuple(map(float, content["mean"])), tuple(map(float, content["std"])))


class ImageFeed(Feed[ImageBatch]):
    """Batches of images with labels.

    Args:
        classes: Outputs that a network needs to be trained with these labels.
        pixels: What the images are.
        contents: What the set holds, where that is known.
    """

    def __init__(self, classes: int, pixels: Pixels, contents: Contents | None = None) -> None:
        super().__init__()
        self.classes, self.channels, self.pixels, self.contents = classes, pixels.channels, pixels, contents


def check_shares(name: str, images_a_batch: int, available: int, world: int) -> None:
    """Raise UsageError for a batch, by its setting's name, that is larger than the set or cannot be shared equally."""
    if not 0 < images_a_batch <= available:
        raise UsageError(Setting(name, images_a_batch), f"choose between 1 and the {available} training images")
    check_shared(name, images_a_batch, world)


def check_shared(name: str, images_a_batch: int, world: int) -> None:
    """Raise UsageError for a batch, by its setting's name, that so many processes cannot share equally."""
    if images_a_batch % world:
        raise UsageError(Setting(name, images_a_batch), f"{world} processes cannot share it equally; choose a multiple")


def check_augment(value: str, folder: bool) -> None:
    """Raise UsageError for a word that is no augmentation, or none of a set's kind: a folder's, or one in memory."""
    known = [name for name in get_args(Augment) if folder or name not in FOR_FOLDERS]
    if value in FOR_FOLDERS and not folder:
        reason = f"is for folders of pictures; a set in memory takes {', '.join(known)}"
        raise UsageError(Setting("augment", value), reason)
    if value not in known:
        raise UsageError(Setting("augment", value), f"unknown; choose one of {', '.join(known)}")


def share(batch: int, images_a_batch: int, rank: int, world: int) -> slice:
    """Return where, in an epoch's order, a process finds its images of a batch."""
    mine = images_a_batch // world
    first = batch * images_a_batch + rank * mine
    return slice(first, first + mine)
