"""Batches of a set that is in memory: which images, in which order, cropped how is a function of integers alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from calibnorm.errors import Setting, UsageError
from calibnorm.lab.data.augment import Shifts, crop_flip, standardize
from calibnorm.lab.data.contents import Contents, of_images
from calibnorm.lab.data.feed import Augment, ImageBatch, ImageFeed, Pixels, check_augment, check_shares, share
from calibnorm.lab.data.image_set import ImageSet, Split, fit
from calibnorm.lab.data.seeding import generator


def train_feed(
    images: ImageSet,
    *,
    batch_size: int,
    seed: int,
    device: torch.device | str,
    augment: Augment = "crop_flip",
    rank: int = 0,
    world: int = 1,
    mix: ImageSet | None = None,
    mix_main: int = 100,
    mix_others: int = 240,
) -> ImageFeed:
    """Return the training batches: whole ones alone, in a new order in each epoch.

    The images that are left over when the set does not divide are others in each epoch. So every step has the same
    batch size: no batch of a few images enters the running statistics, processes have equal shares (the mean of their
    gradients is the batch's), and torch.compile sees one shape. (The papers' code keeps the last, smaller batch: one
    step an epoch more on CIFAR.)

    With ``mix`` this is IEBN's mix-datasets attack (section "Mix-Datasets Attack", Table 3): each batch has
    ``mix_main`` images of the set and ``mix_others`` of the other one (100 and 120 k in the paper). What the paper does
    not say is ours: the labels of the others follow those of the main set (100 classes and 10 make a network of
    ``feed.classes`` = 110 outputs with one loss), accuracy is that on the main set's own test images over all outputs
    (:func:`test_feed` of the main set), gray images get a black frame and three equal channels, each set is
    standardized by its own statistics, and both are augmented alike. Both are shuffled independently; an epoch is one
    pass over the main set, through as many images of the other one as that takes, which is shuffled anew at each pass.

    Args:
        images: From :func:`calibnorm.lab.data.load`.
        batch_size: Images a step of all processes together; with ``mix``, the sum of both numbers.
        seed: With the epoch, it decides the order, crops and flips.
        device: Where the images are put, as bytes, once, and where the batches are made.
        augment: "crop_flip": random crop with 4 pixels of padding and horizontal flip; "crop": without flips; "none".
        rank: This process's number.
        world: Processes that share each batch; their parts are disjoint, and together the batch of one process.
        mix: The other set.
        mix_main: Images of the main set a batch.
        mix_others: Images of the other set a batch.

    Raises:
        UsageError: A batch larger than the set, one that the processes cannot share equally, or an unknown word.
    """
    check_augment(augment, folder=False)
    stream = partial(_Stream, seed=seed, device=torch.device(device), augment=augment)
    if mix is None:
        check_shares("batch_size", batch_size, len(images.train), world)
        streams = [stream("main", images, batch_size, 0)]
        return _TrainFeed(streams, len(images.train) // batch_size, of_images(images), rank, world)
    check_shares("mix_main", mix_main, len(images.train), world)
    check_shares("mix_others", mix_others, len(mix.train), world)
    if batch_size != mix_main + mix_others:
        reason = f"mixed batches of {mix_main} and {mix_others} images need their sum"
        raise UsageError(Setting("batch_size", batch_size), reason)
    others = stream("others", fit(mix, images.channels, images.size), mix_others, images.classes)
    streams = [stream("main", images, mix_main, 0), others]
    return _TrainFeed(streams, len(images.train) // mix_main, of_images(images, mix), rank, world)


def test_feed(
    images: ImageSet,
    *,
    batch_size: int,
    device: torch.device | str,
    rank: int = 0,  # noqa: PT028 (no test of pytest's)
    world: int = 1,  # noqa: PT028
) -> ImageFeed:
    """Return the test images in the set's order, each once over all processes; the last batch may be smaller.

    Arguments are those of :func:`train_feed`. A process takes every ``world``-th image, from number ``rank`` on, and
    may have a batch more than another. A batch size below 1 is a UsageError.
    """
    if batch_size < 1:
        raise UsageError(Setting("batch_size", batch_size), "must be at least 1")
    return _TestFeed(images, max(1, batch_size // world), torch.device(device), rank, world)


test_feed.__test__ = False  # type: ignore[attr-defined]  # pytest takes the name for a test


class _Stream:
    """A set's shuffled images, so many a batch; starts over, in another order, when an epoch needs more than it has."""

    def __init__(
        self,
        purpose: str,
        images: ImageSet,
        per_batch: int,
        first_label: int,
        seed: int,
        device: torch.device,
        augment: Augment,
    ) -> None:
        self._purpose, self._per_batch, self._seed, self._augment = purpose, per_batch, seed, augment
        self._images = images.train.images.to(device)
        self._labels = images.train.labels.to(device) + first_label
        self.pixels = _pixels(images)
        self._mean, self._std = self.pixels.statistics(device)

    def draw(self, epoch: int, batches: int) -> tuple[Tensor, Shifts]:
        """Draw an epoch's order and crops, once an epoch: 2 ms for 60000 images on one CPU core."""
        count = batches * self._per_batch
        passes = -(-count // len(self._labels))
        random = generator(f"{self._purpose} order", self._seed, epoch)
        order = torch.cat([torch.randperm(len(self._labels), generator=random) for _ in range(passes)])[:count]
        random = generator(f"{self._purpose} crops", self._seed, epoch)
        shifts = Shifts.draw(count, random, flip=self._augment == "crop_flip")
        return order.to(self._labels.device), shifts.to(self._labels.device)

    def batch(self, order: Tensor, shifts: Shifts, number: int, rank: int, world: int) -> tuple[Tensor, Tensor]:
        """Return a process's part of a batch."""
        part = share(number, self._per_batch, rank, world)
        rows = order[part]
        images = self._images[rows]
        if self._augment != "none":
            images = crop_flip(images, shifts[part])
        return standardize(images, self._mean, self._std), self._labels[rows]


class _TrainFeed(ImageFeed):
    def __init__(self, streams: list[_Stream], batches: int, contents: Contents, rank: int, world: int) -> None:
        super().__init__(len(contents.classes), streams[0].pixels, contents)
        self._streams, self._batches, self._rank, self._world = streams, batches, rank, world

    def __len__(self) -> int:
        return self._batches

    def batches(self, epoch: int, start: int) -> Iterator[ImageBatch]:
        drawn = [(stream, *stream.draw(epoch, self._batches)) for stream in self._streams]
        for number in range(start, self._batches):
            parts = [s.batch(order, shifts, number, self._rank, self._world) for s, order, shifts in drawn]
            if len(parts) == 1:
                yield parts[0]
            else:
                images, labels = zip(*parts, strict=True)
                yield torch.cat(images), torch.cat(labels)


class _TestFeed(ImageFeed):
    def __init__(self, images: ImageSet, batch_size: int, device: torch.device, rank: int, world: int) -> None:
        super().__init__(images.classes, pixels := _pixels(images))
        self._split = Split(*(t[rank::world].to(device) for t in (images.test.images, images.test.labels)))
        self._mean, self._std = pixels.statistics(device)
        self._batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self._split) // self._batch_size)

    def batches(self, epoch: int, start: int) -> Iterator[ImageBatch]:
        for first in range(start * self._batch_size, len(self._split), self._batch_size):
            rows = slice(first, first + self._batch_size)
            yield standardize(self._split.images[rows], self._mean, self._std), self._split.labels[rows]


def _pixels(images: ImageSet) -> Pixels:
    return Pixels(images.size, images.size, images.mean, images.std)
