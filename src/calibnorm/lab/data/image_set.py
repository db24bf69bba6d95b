"""A whole set of small images in memory, and what can be made of one: a part, smaller images, color from gray."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from calibnorm.errors import Setting, UsageError
from calibnorm.lab.data.seeding import generator


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
class ImageSet:
    """A whole set in memory.

    Args:
        name: The set's, as in :func:`calibnorm.lab.data.names`.
        train: What the network learns from.
        test: What it is measured on.
        classes: Number of labels.
        channels: 1 or 3.
        size: Pixels a side.
        mean: The mean of each channel over all pixels of the training images, black 0 and white 1.
        std: Their standard deviation, the population's.
    """

    name: str
    train: Split
    test: Split
    classes: int
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def make(name: str, train: Split, test: Split, classes: int) -> ImageSet:
    """Return a checked set with the statistics of its training images.

    Raises:
        UsageError: What training would trip over: no images, other shapes or types than those of :class:`Split`, labels
            outside 0 to ``classes`` - 1, or training images of one color.
    """
    for part, split in (("training", train), ("test", test)):
        check(name, part, split, classes)
    if train.images.shape[1:] != test.images.shape[1:]:
        shapes = f"{tuple(train.images.shape[1:])} for training and {tuple(test.images.shape[1:])} for the test"
        raise UsageError(Setting("data", name), f"images of {shapes}; they must have one shape")
    mean, std = statistics(train.images)
    if min(std) == 0:
        reason = "a channel has one value in all training images; nothing can be learned from it"
        raise UsageError(Setting("data", name), reason)
    channels, size = train.images.shape[1:3]
    return ImageSet(name, train, test, classes, channels, size, mean, std)


def check(name: str, part: str, split: Split, classes: int) -> None:
    """Raise UsageError for "training" or "test" images, or for labels, that are not what :class:`Split` says."""
    if wrong := _wrong(split.images, split.labels, classes):
        raise UsageError(Setting("data", name), f"the {part} images {wrong}")


def _wrong(images: Tensor, labels: Tensor, classes: int) -> str:
    if images.ndim != 4 or images.dtype != torch.uint8 or images.shape[2] != images.shape[3]:
        return f"are {tuple(images.shape)} in {images.dtype}; they must be (N, C, H, H) in torch.uint8"
    if images.shape[1] not in (1, 3):
        return f"have {images.shape[1]} channels; they must have 1 or 3"
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        shape = f"{tuple(labels.shape)} in {labels.dtype}"
        return f"have labels {shape}; they must be ({len(images)},) in torch.int64"
    if not images.numel():
        return "are none; put the original files there"
    low, high = int(labels.min()), int(labels.max())
    outside = low < 0 or high >= classes
    return f"have labels from {low} to {high}; {classes} classes are 0 to {classes - 1}" if outside else ""


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


def balanced(labels: Tensor, classes: int, count: int, seed: int) -> Tensor:
    """Choose ``count`` images, the classes as equal as they can be; a smaller choice is a part of a larger one.

    Args:
        labels: (N,), 0 to ``classes`` - 1.
        classes: Number of labels.
        count: How many.
        seed: Chooses which.

    Returns:
        (count,) rows, rising.

    Raises:
        UsageError: Less than one image, or more than there are.
    """
    if not 0 < count <= len(labels):
        reason = f"choose between 1 and the {len(labels)} training images there are"
        raise UsageError(Setting("train_images", count), reason)
    queues = []
    for label in range(classes):
        rows = (labels == label).nonzero().flatten()
        queues.append(rows[torch.randperm(len(rows), generator=generator("subset", seed, label))])
    quotas = _quotas([len(queue) for queue in queues], count)
    return torch.cat([queue[:quota] for queue, quota in zip(queues, quotas, strict=True)]).sort().values


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


def shrink(images: ImageSet, size: int) -> ImageSet:
    """Return the set with smaller images: each pixel is the mean of a square of pixels, rounded half to even.

    The sums are whole numbers and the division is rounded once, so every machine gives the same bytes.

    Raises:
        UsageError: ``size`` does not divide the images' size.
    """
    if size == images.size:
        return images
    if size < 1 or images.size % size:
        sizes = ", ".join(str(n) for n in range(1, images.size + 1) if images.size % n == 0)
        reason = f"{images.name} has {images.size} pixels a side; choose one of {sizes}"
        raise UsageError(Setting("image_size", size), reason)
    side = images.size // size

    def smaller(split: Split) -> Split:
        squares = split.images.view(len(split), images.channels, size, side, size, side)
        total = squares.sum((3, 5), dtype=torch.int32)
        return Split(torch.round(total / side**2).to(torch.uint8), split.labels)

    return make(images.name, smaller(images.train), smaller(images.test), images.classes)


def fit(images: ImageSet, channels: int, size: int) -> ImageSet:
    """Return the set in another set's format: black around the images, and gray as three equal channels.

    28 x 28 become 32 x 32 with two black pixels on each side: no pixel is changed, as resizing would. The backgrounds
    of MNIST and FashionMNIST are black already. Larger images are shrunk first, by whole squares, until they fit: 28 x
    28 become 7 x 7 in 8 x 8. Mean and standard deviation are those of the new images.

    Raises:
        UsageError: The images have color where gray is wanted.
    """
    if images.size > size:
        images = shrink(images, max(n for n in range(1, size + 1) if images.size % n == 0))
    if images.channels not in (1, channels):
        ours, theirs = (f"{c} x {s} x {s}" for c, s in ((images.channels, images.size), (channels, size)))
        raise UsageError(Setting("mix", images.name), f"its images of {ours} do not fit into {theirs}")
    before = (size - images.size) // 2
    after = size - images.size - before

    def fitted(split: Split) -> Split:
        framed = pad(split.images, (before, after, before, after))
        return replace(split, images=framed.expand(-1, channels, -1, -1))

    return make(images.name, fitted(images.train), fitted(images.test), images.classes)
