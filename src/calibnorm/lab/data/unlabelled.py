"""Photographs without labels, from a folder or from what scikit-learn and scikit-image bring: batches of parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from calibnorm.errors import Setting, UsageError
from calibnorm.lab.data import photographs
from calibnorm.lab.data.contents import Contents, Part, digest
from calibnorm.lab.data.feed import Augment, Pixels, check_shared
from calibnorm.lab.data.folders import Order, PictureFeed
from calibnorm.lab.data.listing import Listing, listed, pictures_below
from calibnorm.lab.data.pictures import Pictures, resized_for
from calibnorm.lab.data.seeding import generator
from calibnorm.lab.data.workers import readers

EVERY, MOST = 10, 16
"""Of a folder's pictures every tenth is for the test, up to so many."""
HELD_OUT = ("cat", "china", "coffee", "rocket")
"""Those of the packages' photographs that are for the test."""
CLASS = "photographs"
"""What the one class is called."""
BYTES = ((0.0,) * 3, (1.0,) * 3)
"""Pixels from 0 to 1, as they are."""


@dataclass(frozen=True)
class Photographs(Contents):
    """What is read of photographs that have no classes.

    Args:
        beside: Sentences on what else a run reads.
    """

    beside: tuple[str, ...] = ()

    @property
    def outputs(self) -> tuple[str, ...]:
        """Nothing: no output of a network stands for a class."""
        return ()

    def of_outputs(self) -> dict[str, list[str]]:
        """Return nothing."""
        return {}

    def in_words(self) -> list[str]:
        """Return how many photographs there are."""
        train, test = self.train.images[CLASS], self.test.images[CLASS]
        return [f"{self.data}: {train} photographs to train on, {test} others to test on", *self.beside]

    def news(self) -> list[str]:
        """Return the same: a run says it first."""
        return self.in_words()

    def difference(self, before: Contents) -> str:
        """Return in words how these differ from those of before."""
        return super().difference(before).replace("class ", "")


def find(folder: Path | None, without: str = "") -> tuple[list[Path], list[Path]]:
    """Return the photographs to train on, and those to test on.

    Args:
        folder: Holds pictures, in folders or not; None is what the packages bring.
        without: Name of one of the packages' pictures that is left out.

    Raises:
        UsageError: The folder is missing, cannot be read, or holds fewer than two pictures.
    """
    if folder is None:
        names = [name for name in photographs.NAMES if name not in (without, *HELD_OUT)]
        return [photographs.path_of(name) for name in names], [photographs.path_of(name) for name in HELD_OUT]
    asked = Setting("content", folder)
    if not folder.is_dir():
        raise UsageError(asked, "is no folder; name one that holds photographs")
    try:
        paths = pictures_below(folder)
    except OSError as error:
        raise UsageError(asked, f"{error.filename}: {error.strerror}") from None
    if len(paths) < 2:
        found = f"holds {len(paths) or 'no'} picture{'s' if len(paths) != 1 else ''}"
        raise UsageError(asked, f"{found}; two are needed, one to train on and one to test on")
    test = paths[::EVERY][:MOST]
    return [path for path in paths if path not in test], test


def feeds(
    found: tuple[Sequence[Path], Sequence[Path]],
    name: str,
    others: Mapping[str, Path],
    beside: Sequence[str],
    *,
    size: int,
    batch_size: int,
    batches: int,
    seed: int,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
    workers: int | None = None,
) -> tuple[PictureFeed, PictureFeed]:
    """Return the batches to train on and those to test on: pictures from 0 to 1, with labels that mean nothing.

    Training pictures are random parts, resized, and flipped; in an epoch every photograph is there equally often, but
    for the last round. Test pictures are cut from the centre.

    Args:
        found: Files to train on and to test on, as :func:`find` returns them.
        name: What they are called.
        others: Other files that a run needs to go on, by name.
        beside: Sentences on what else a run reads, which it says.
        size: Pixels a side.
        batch_size: Pictures a step, over all processes.
        batches: Steps of an epoch.
        seed: With the epoch it decides order, parts and flips.
        device: Where the batches are put.
        rank: This process's number.
        world: Processes that share each batch.
        workers: Processes that read pictures, for each feed; by default one a core, at most 8.

    Raises:
        UsageError: The batch cannot be shared; later, with its name, a picture that cannot be read.
    """
    check_shared("batch_size", batch_size, world)
    train, test = (listed(paths, CLASS) for paths in found)
    digests = {other: digest([path.read_bytes()]) for other, path in others.items()}
    part = Part(train.part.images | dict.fromkeys(others, 1), train.part.digests | digests)
    contents = Photographs(name, (CLASS, *others), part, test.part, tuple(beside))

    def rows(epoch: int) -> Tensor:
        draw, rounds = generator("photographs", seed, epoch), -(-batches * batch_size // len(train))
        order = torch.cat([torch.randperm(len(train), generator=draw) for _ in range(rounds)])
        return order[: batches * batch_size].view(batches, world, -1)[:, rank].flatten()

    mine = torch.arange(len(test))[rank::world]
    orders = (
        Order(rows, batches * batch_size // world, batch_size // world),
        Order(lambda epoch: mine, len(mine), max(1, batch_size // world)),
    )
    taken = Pixels(size, resized_for(size), *BYTES)
    readers_each = readers() if workers is None else workers

    def feed(of: Listing, order: Order, augment: Augment) -> PictureFeed:
        return PictureFeed(Pictures(of, size, seed, augment), order, contents, device, readers_each, taken)

    return feed(train, orders[0], "crop_flip"), feed(test, orders[1], "none")
