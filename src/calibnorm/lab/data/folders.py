"""ImageNet and folders like it: batches through worker processes, a function of integers all the same."""

from __future__ import annotations

import atexit
import time
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from calibnorm.errors import Setting, UsageError
from calibnorm.lab.data import sets
from calibnorm.lab.data.augment import standardize
from calibnorm.lab.data.contents import Contents
from calibnorm.lab.data.feed import Augment, Feed, ImageBatch, ImageFeed, Pixels, check_augment, check_shares
from calibnorm.lab.data.image_set import balanced
from calibnorm.lab.data.listing import Listing, scan
from calibnorm.lab.data.pictures import Damaged, Pictures, collate, resized_for
from calibnorm.lab.data.seeding import generator
from calibnorm.lab.data.workers import START_METHOD, end_workers, held_back, readers, start_worker, started

Batch = TypeVar("Batch")

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Those of ImageNet's training images, as everybody uses them: 1.3 million pictures are not read for three numbers."""

TIMEOUT_S = 300
"""A batch that takes longer never comes."""
CHECK_S = 5
"""How often workers are looked after while a batch is waited for: torch's handler sees one that a signal ended."""


class WorkerError(RuntimeError):
    """A worker process died or hangs."""


class _Late(WorkerError):
    """No batch yet."""


_ADVICE = "too little memory, or a disk that hangs? Try fewer workers or smaller batches"


def worker_error(error: RuntimeError) -> WorkerError | None:
    """Return ours for what torch raises when a worker is gone or late; None for other errors.

    That a worker died, torch raises where the program is when its signal comes: most often in a training step.
    """
    reason = next(iter(str(error).splitlines()), "").strip().rstrip(".")
    if isinstance(error, WorkerError):
        return error
    if "DataLoader" not in reason or "Caught" in reason:  # "Caught": something raised in a worker
        return None
    return (_Late if "timed out" in reason else WorkerError)(f"{reason}; {_ADVICE}")


@contextmanager
def _named_errors() -> Iterator[None]:
    """Turn what torch raises when a worker is gone or late, in a line, into ours; the user's own errors pass."""
    try:
        yield
    except (OSError, EOFError) as error:  # no more memory or files to start one, or the end of one that hands over
        raise WorkerError(f"a DataLoader worker ended ({type(error).__name__}: {error}); {_ADVICE}") from None
    except RuntimeError as error:
        ours = worker_error(error)
        if ours is None or ours is error:
            raise
        raise ours from None


class FolderFeeds(NamedTuple):
    """Both feeds of a folder set, and the names of the classes' folders: the labels."""

    train: ImageFeed
    test: ImageFeed
    class_names: tuple[str, ...]


def folder_feeds(
    name: str,
    root: Path,
    *,
    batch_size: int,
    seed: int,
    device: torch.device | str,
    augment: Augment = "crop_flip",
    size: int = 224,
    train_images: int | None = None,
    pixels: tuple[Sequence[float], Sequence[float]] = (MEAN, STD),
    workers: int | None = None,
    rank: int = 0,
    world: int = 1,
) -> FolderFeeds:
    """Return feeds of root/<name>/train/<class>/* and root/<name>/val/<class>/*, or of those in root itself.

    Training pictures are cut at random, resized and flipped (:class:`calibnorm.lab.data.pictures.Pictures`), test
    pictures are resized and cut from the centre. Workers hand over bytes; they are standardized on the device.

    Args:
        name: "imagenet", which has 1000 classes, or "folders": anybody's pictures, of as many classes as there are.
        root: Holds train and val, or a folder of that name with them.
        batch_size: Images a step of all processes together; only whole batches are trained on.
        seed: With the epoch, it decides the order and, picture by picture, cuts and flips.
        device: Where the batches are put.
        augment: "crop_flip", "crop" or "none"; or "randaugment" or "trivialaugment", torchvision's, after a crop and a
            flip.
        size: Pixels a side.
        train_images: Only so many training pictures, balanced over the classes; all by default.
        pixels: What is subtracted from a pixel and what it is divided by, black 0 and white 1; ImageNet's by default.
        workers: Processes that read pictures, for each feed; by default one a core, at most 8; 0 reads in this process.
        rank: This process's number.
        world: Processes that share each batch.

    Raises:
        UsageError: A folder is missing or empty, train and val have different classes or one alone, they are not
            ImageNet's 1000, or the batch cannot be shared; later, with its name, a picture that cannot be read.
        WorkerError: Later: a worker process died.
    """
    check_augment(augment, folder=True)
    device = torch.device(device)
    try:
        folder = _find(name, Path(root))
        train, test = scan(folder / "train"), scan(folder / "val")
    except OSError as error:  # a folder that must not be looked into
        raise UsageError(Setting("data", name), f"{error.filename}: {error.strerror}") from None
    _check_classes(train, test, sets.info(name).classes)
    rows = torch.arange(len(train))
    if train_images is not None:
        rows = balanced(train.labels, len(train.classes), train_images, 0)
    check_shares("batch_size", batch_size, len(rows), world)
    test_rows = torch.arange(len(test))[rank::world]
    test_order = Order(lambda epoch: test_rows, len(test_rows), max(1, batch_size // world))
    contents = Contents(name, train.classes, train.part, test.part)
    mean, std = map(tuple, pixels)
    taken = Pixels(size, resized_for(size), mean, std)
    common = (contents, device, readers() if workers is None else workers, taken)
    return FolderFeeds(
        PictureFeed(Pictures(train, size, seed, augment), train_order(rows, batch_size, seed, rank, world), *common),
        PictureFeed(Pictures(test, size, seed, "none"), test_order, *common),
        train.classes,
    )


def _find(name: str, root: Path) -> Path:
    """Return the folder with train and val, or say how to make it."""
    for folder in (root / name, root):
        if (folder / "train").is_dir():
            return folder
    asked, place = Setting("data", name), f"{(root / name).absolute()}/train/CLASS/ and val/CLASS/"
    if name != "imagenet":
        how = f"put pictures into {place}, a folder for each class and the same ones in both"
        remedy = f"{how}; or name the folder that holds train and val as the "
        raise UsageError(asked, f"is missing; {remedy}", Setting("data_root"))
    for folder in (root / name, root):
        if (folder / "ILSVRC2012_img_train.tar").is_file():
            command = f"from torchvision.datasets import ImageNet as I; I('{folder}', 'train'); I('{folder}', 'val')"
            raise UsageError(asked, f'archives in {folder} are not unpacked: run python -c "{command}"')
    remedy = "download ILSVRC2012 (its archives img_train, img_val and devkit_t12)"
    raise UsageError(asked, f"is missing; {remedy} and unpack the pictures into {place}")


def _check_classes(train: Listing, test: Listing, classes: int | None) -> None:
    if different := sorted(set(train.classes) ^ set(test.classes)):
        name = different[0]
        there, lacking = (train, test) if name in train.classes else (test, train)
        reason = f"has a class {name!r} that {lacking.folder} has not ({len(different)} such classes)"
        raise UsageError(f"{there.folder} {reason}; both need the same folders")
    if len(train.classes) == 1:
        reason = f"has one class, {train.classes[0]!r}, alone: there is nothing to tell apart"
        raise UsageError(f"{train.folder} {reason}; make a folder for each class, there and in {test.folder}")
    if classes not in (None, len(train.classes)):
        reason = f"{len(train.classes)} folders of classes instead of {classes}; "
        raise UsageError(f"{train.folder}: {reason}", Setting("data", "folders"), " takes any number")


class Order(Sampler[list[tuple[int, int]]]):
    """Yields, for the epoch and from the batch that were set, what :class:`Pictures` is asked for.

    Args:
        rows: A process's pictures of an epoch, in their order.
        count: How many these are.
        size: Of a batch, this process's part of it.
    """

    epoch = start = 0

    def __init__(self, rows: Callable[[int], Tensor], count: int, size: int) -> None:
        self._rows, self._count, self._size = rows, count, size

    def __len__(self) -> int:
        return -(-self._count // self._size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rows = self._rows(self.epoch)
        for first in range(self.start * self._size, self._count, self._size):
            yield [(self.epoch, row) for row in rows[first : first + self._size].tolist()]


def train_order(rows: Tensor, batch_size: int, seed: int, rank: int, world: int) -> Order:
    """Return the order of whole batches of pictures, of each of which a process has an equal part."""
    batches = len(rows) // batch_size

    def mine(epoch: int) -> Tensor:
        order = rows[torch.randperm(len(rows), generator=generator("main order", seed, epoch))]
        return order[: batches * batch_size].view(batches, world, -1)[:, rank].flatten()

    return Order(mine, batches * batch_size // world, batch_size // world)


class ReadFeed(Feed[Batch]):
    """Batches that are read from files as they are needed, in processes or in this one."""

    def _load(
        self,
        items: Dataset[Any],
        order: Order,
        device: torch.device,
        workers: int,
        collate: Callable[[Any], Any],
    ) -> None:
        """Say what is read.

        Args:
            items: What there is, by (epoch, index).
            order: Which of it every batch holds.
            device: Where the batches are put.
            workers: Processes that read; 0 reads in this process.
            collate: Makes a batch of items, or returns the first that is `Damaged`.
        """
        self._order, self._device = order, device
        self._loader: DataLoader[Any] = DataLoader(
            items,
            batch_sampler=order,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=device.type == "cuda",
            timeout=CHECK_S if workers else 0,
            worker_init_fn=start_worker,
            multiprocessing_context=START_METHOD if workers else None,
            generator=torch.Generator(),  # else a seed for the workers is drawn from the global one
            persistent_workers=workers > 0,
        )
        self._end: weakref.finalize[Any, Any] | None = None

    @abstractmethod
    def ready(self, batch: Any) -> Batch:
        """Return what a network takes of what was read, on the device."""

    def __len__(self) -> int:
        return len(self._order)

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """Yield an epoch's batches from number ``start`` on; raise UsageError for a picture that cannot be read."""
        self._order.epoch, self._order.start = epoch, start
        try:
            iterator = self._iterator()
            while (batch := self._next(iterator)) is not None:
                if isinstance(batch, Damaged):
                    raise UsageError(batch.reason)
                yield self.ready(batch)
        except GeneratorExit:  # the rest is not wanted; the workers stay for the next epoch
            raise
        except BaseException:
            self.close()
            raise

    def _next(self, iterator: Iterator[Any]) -> Any:
        """Return the next batch, or None at the end."""
        start = time.monotonic()
        while True:
            try:
                with _named_errors():
                    return next(iterator, None)
            except _Late:
                if time.monotonic() - start > TIMEOUT_S:
                    raise

    def _iterator(self) -> Iterator[Any]:
        """Return an iterator over the loader; its worker processes are kept for the next one."""
        try:
            return self._start_iterator()
        except _Late:  # the rest of an epoch that was broken off, which torch waits for
            self.close()
            return self._start_iterator()

    def _start_iterator(self) -> Iterator[Any]:
        with held_back():
            with _named_errors():
                iterator, workers = started(lambda: iter(self._loader))
            if workers:
                # With the feed, or when the program ends, before multiprocessing waits for them there.
                self._end = weakref.finalize(self, end_workers, iterator, workers)
                atexit.register(self._end)
        return iterator

    def close(self) -> None:
        """End the worker processes."""
        if self._end is not None:
            self._end()
            atexit.unregister(self._end)
            self._end = None
            self._loader._iterator = None


class PictureFeed(ReadFeed[ImageBatch], ImageFeed):
    """Batches of pictures that are read from files as they are needed.

    Args:
        pictures: The pictures.
        order: Which of them every batch holds.
        contents: What the set holds.
        device: Where the batches are put.
        workers: Processes that read; 0 reads in this process.
        pixels: What the batches are of.
    """

    def __init__(
        self,
        pictures: Pictures,
        order: Order,
        contents: Contents,
        device: torch.device,
        workers: int,
        pixels: Pixels,
    ) -> None:
        ImageFeed.__init__(self, len(contents.classes), pixels, contents)
        self._load(pictures, order, device, workers, collate)
        self._mean, self._std = pixels.statistics(device)

    def ready(self, batch: Any) -> ImageBatch:
        """Return images that are standardized, and their labels."""
        images, labels = (part.to(self._device, non_blocking=True) for part in batch)
        return standardize(images, self._mean, self._std), labels
