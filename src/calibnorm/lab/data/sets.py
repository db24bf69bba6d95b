"""Small image sets, whole, as tensors; where each is found on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from calibnorm.lab.data import idx
from calibnorm.lab.data.seeding import generator
from calibnorm.lab.errors import UsageError

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its four files."""


@dataclass(frozen=True)
class Split:
    """Images and their labels.

    Args:
        images: (N, C, H, W) in uint8.
        labels: (N,) in int64.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Info:
    """What is known of a set without reading it.

    Args:
        classes: Number of labels.
        channels: 1 (gray) or 3 (red, green, blue).
        size: Pixels a side of the images that a network gets.
        folder: Whether it is a folder of pictures that worker processes read, not tensors in memory.
    """

    classes: int
    channels: int
    size: int
    folder: bool = False


@dataclass(frozen=True)
class ImageSet:
    """A whole set in memory.

    Args:
        name: Of the set, as in :func:`names`.
        train: What the network learns from.
        test: What it is measured on.
        classes: Number of labels.
        channels: 1 or 3.
        size: Pixels a side.
        mean: Of each channel over all pixels of the training images, black 0 and white 1.
        std: Likewise, the population's.
    """

    name: str
    train: Split
    test: Split
    classes: int
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def names() -> tuple[str, ...]:
    """Return the sets that :func:`load` knows."""
    return tuple(_SETS)


def info(name: str) -> Info:
    """Return what is known of a set without reading it.

    Raises:
        UsageError: No set of that name.
    """
    return _known(name)[0]


def load(name: str, root: Path, *, train_images: int | None = None, subset_seed: int = 0) -> ImageSet:
    """Read a set into memory.

    Args:
        name: One of :func:`names`.
        root: The folder that holds the sets, as torchvision's ``root``.
        train_images: Only so many training images, as many of each class as there are (the first classes get one more
            where it does not divide); None for all. A smaller number is a part of a larger one.
        subset_seed: Chooses which, together with ``train_images`` alone.

    Raises:
        UsageError: No such set, a missing or damaged file, or more images asked for than there are.
    """
    facts, read = _known(name)
    train, test = read(root)
    if train_images is not None:
        train = subset(train, facts.classes, train_images, subset_seed)
    mean, std = statistics(train.images)
    return ImageSet(name, train, test, facts.classes, facts.channels, facts.size, mean, std)


def subset(split: Split, classes: int, count: int, seed: int) -> Split:
    """Return ``count`` images in their order in the set, the classes as equal as they can be.

    Raises:
        UsageError: Less than one image, or more than there are.
    """
    if not 0 < count <= len(split):
        raise UsageError(f"train_images={count}: choose between 1 and the {len(split)} training images there are")
    queues = []
    for label in range(classes):
        rows = (split.labels == label).nonzero().flatten()
        queues.append(rows[torch.randperm(len(rows), generator=generator("subset", seed, label))])
    quotas = _quotas([len(queue) for queue in queues], count)
    rows = torch.cat([queue[:quota] for queue, quota in zip(queues, quotas, strict=True)]).sort().values
    return Split(split.images[rows], split.labels[rows])


def _quotas(sizes: list[int], count: int) -> list[int]:
    """Share ``count`` over classes of these sizes as evenly as they allow."""
    quotas = [0] * len(sizes)
    while count:
        open_classes = [label for label, size in enumerate(sizes) if quotas[label] < size]
        share = max(1, min(count // len(open_classes), min(sizes[label] - quotas[label] for label in open_classes)))
        for label in open_classes[:count]:
            quotas[label] += share
            count -= share
    return quotas


def statistics(images_NCHW: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return each channel's mean and standard deviation over all pixels, black 0 and white 1.

    Counted with integers, so exact and equal on every machine.
    """
    means, stds = [], []
    for channel in images_NCHW.unbind(1):
        counts = torch.bincount(channel.flatten(), minlength=256).tolist()
        total = sum(counts)
        mean = sum(value * count for value, count in enumerate(counts)) / total
        variance = sum((value - mean) ** 2 * count for value, count in enumerate(counts)) / total
        means.append(mean / 255)
        stds.append(variance**0.5 / 255)
    return tuple(means), tuple(stds)


def _known(name: str) -> tuple[Info, Callable[[Path], tuple[Split, Split]]]:
    if name not in _SETS:
        raise UsageError(f"data={name}: unknown; choose one of {', '.join(_SETS)}")
    return _SETS[name]


def _read_fashion_mnist(root: Path) -> tuple[Split, Split]:
    return _idx_set("FashionMNIST", [root / "FashionMNIST" / "raw", DEBIAN_FASHION_MNIST])


def _idx_set(title: str, folders: list[Path]) -> tuple[Split, Split]:
    """Read the four files of the first folder that holds one of them."""
    stems = [f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    for folder in folders:
        paths = {stem: next((p for p in (folder / stem, folder / f"{stem}.gz") if p.is_file()), None) for stem in stems}
        if any(paths.values()):
            break
    missing = [stem for stem, path in paths.items() if path is None]
    if missing:
        where = folder if len(missing) < len(stems) else folders[0]
        raise UsageError(f"{title}: missing; download {', '.join(f'{stem}.gz' for stem in missing)} into {where}")

    def part(name: str) -> Split:
        images = idx.read(paths[f"{name}-images-idx3-ubyte"] or Path(), 3)
        labels = idx.read(paths[f"{name}-labels-idx1-ubyte"] or Path(), 1)
        return Split(images.unsqueeze(1), labels.to(torch.int64))

    return part("train"), part("t10k")


def _read_digits(root: Path) -> tuple[Split, Split]:
    from calibnorm.lab.data.digits import split

    parts = split()

    def images(array: object) -> Tensor:
        # 16 shades become 0 to 240: whole numbers, and standardized images are the same.
        return torch.as_tensor(array * 15).to(torch.uint8).unsqueeze(1)  # type: ignore[operator]

    return (
        Split(images(parts.train_images), torch.as_tensor(parts.train_labels)),
        Split(images(parts.test_images), torch.as_tensor(parts.test_labels)),
    )


_SETS: dict[str, tuple[Info, Callable[[Path], tuple[Split, Split]]]] = {
    "fashion_mnist": (Info(10, 1, 28), _read_fashion_mnist),
    "digits": (Info(10, 1, 8), _read_digits),
}
