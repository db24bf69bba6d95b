"""The sets by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibnorm.errors import Setting, UsageError
from calibnorm.lab.data import cifar, composed, digits, mnist
from calibnorm.lab.data.image_set import ImageSet, Split, balanced, check, make
from calibnorm.lab.data.photographs import NAMES


@dataclass(frozen=True)
class Info:
    """What is known of a set without reading it.

    Args:
        classes: Number of labels; None where any number will do.
        channels: 1 (gray) or 3 (red, green, blue).
        size: Pixels a side of the images that a network gets.
        folder: Whether it is a folder of pictures that worker processes read
            (:func:`calibnorm.lab.data.folder_feeds`), not tensors in memory (:func:`load`).
        class_names: What the labels mean; none where a label is its own name, or a folder's.
    """

    classes: int | None
    channels: int
    size: int
    folder: bool = False
    class_names: tuple[str, ...] = ()


Reader = Callable[[Path], tuple[Split, Split]]

_SETS: dict[str, tuple[Info, Reader | None]] = {
    "digits": (Info(10, 1, 8), digits.read),
    "mnist": (Info(10, 1, 28), mnist.read_mnist),
    "fashion_mnist": (Info(10, 1, 28, class_names=mnist.FASHION), mnist.read_fashion_mnist),
    "cifar10": (Info(10, 3, 32, class_names=cifar.CIFAR10), cifar.read_cifar10),
    "cifar100": (Info(100, 3, 32, class_names=cifar.CIFAR100), cifar.read_cifar100),
    "fashion_colours": (Info(10, 3, composed.SIZE, class_names=mnist.FASHION), composed.read_fashion_colours),
    "patches": (Info(len(NAMES), 3, composed.SIZE, class_names=NAMES), composed.read_patches),
    "pasted_digits": (Info(10, 3, composed.SIZE), composed.read_pasted_digits),
    "imagenet": (Info(1000, 3, 224, folder=True), None),
    "folders": (Info(None, 3, 224, folder=True), None),
}


def names() -> tuple[str, ...]:
    """Return the sets there are."""
    return tuple(_SETS)


def info(name: str) -> Info:
    """Return what is known of a set without reading it; raise UsageError where there is none of that name."""
    if name not in _SETS:
        folders = ("; for your own pictures give ", Setting("data", "folders"), " and ", Setting("data_root", name))
        other = folders if Path(name).is_dir() else ()
        raise UsageError(Setting("data", name), f"unknown; choose one of {', '.join(_SETS)}", *other)
    return _SETS[name][0]


def class_names(name: str, classes: int) -> tuple[str, ...]:
    """Return what a set's labels mean: the numbers from 0 where they say it themselves, as digits do.

    >>> class_names("fashion_mnist", 10)[:3], class_names("digits", 10)[:3]
    (('T-shirt/top', 'Trouser', 'Pullover'), ('0', '1', '2'))
    """
    known = _SETS[name][0].class_names if name in _SETS else ()
    return known or tuple(map(str, range(classes)))


@contextmanager
def remembered() -> Iterator[None]:
    """Let `load`, inside the block, read each set once: asked alike again, it returns what it returned before."""
    token = _READ.set(_READ.get({}))
    try:
        yield
    finally:
        _READ.reset(token)


_READ: ContextVar[dict[tuple[Any, ...], ImageSet]] = ContextVar("what load remembers")


def load(name: str, root: Path, *, train_images: int | None = None, subset_seed: int = 0) -> ImageSet:
    """Read a set into memory.

    Nothing is ever downloaded, and no file is unpickled before its checksum is known to be the original's.

    Args:
        name: One of :func:`names`.
        root: The folder that holds the sets, as torchvision's ``root``.
        train_images: Only so many training images, as many of each class as there are (the first classes get one more
            where it does not divide); None for all. A smaller number is a part of a larger one.
        subset_seed: Chooses which, together with ``train_images`` alone.

    Returns:
        The set, with the mean and standard deviation of the training images that were chosen.

    Raises:
        UsageError: No such set, a missing, damaged or changed file, images or labels that are not what the set's are,
            or more images asked for than there are.
    """
    asked, memory = (name, Path(root), train_images, subset_seed), _READ.get({})
    if asked not in memory:
        memory[asked] = _load(*asked)
    return memory[asked]


def _load(name: str, root: Path, train_images: int | None, subset_seed: int) -> ImageSet:
    facts, read = info(name), _SETS[name][1]
    if read is None or facts.classes is None:
        reason = "its pictures do not fit into memory; calibnorm.lab.data.folder_feeds reads them"
        raise UsageError(Setting("data", name), reason)
    try:
        train, test = read(root)
    except OSError as error:  # a folder that must not be looked into
        raise UsageError(Setting("data", name), f"{error.filename}: {error.strerror}") from None
    if train_images is not None:
        check(name, "training", train, facts.classes)
        rows = balanced(train.labels, facts.classes, train_images, subset_seed)
        train = Split(train.images[rows], train.labels[rows])
    images = make(name, train, test, facts.classes)
    if (images.channels, images.size) != (facts.channels, facts.size):
        found, expected = (f"{x.channels} x {x.size} x {x.size}" for x in (images, facts))
        reason = f"images of {found} instead of {expected}; put the original files there"
        raise UsageError(Setting("data", name), reason)
    return images
