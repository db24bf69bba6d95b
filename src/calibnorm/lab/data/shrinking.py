"""Smaller images, by averaging squares of pixels: a network's time falls with the number of pixels."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from calibnorm.lab.data.image_set import ImageSet, Split, statistics
from calibnorm.lab.errors import UsageError


def shrink(images: ImageSet, size: int) -> ImageSet:
    """Return the set with so many pixels a side; its mean and std are those of the shrunk training images.

    Args:
        images: A whole set.
        size: A divisor of the set's own size.

    Raises:
        UsageError: The size does not divide the set's.
    """
    factor = shrink_factor(images.name, images.size, size)
    if factor == 1:
        return images
    train, test = (Split(average(split.images, factor), split.labels) for split in (images.train, images.test))
    mean, std = statistics(train.images)
    return replace(images, train=train, test=test, size=size, mean=mean, std=std)


def shrink_factor(name: str, size: int, wanted: int) -> int:
    """Return how many pixels a side become one.

    Raises:
        UsageError: The wanted size does not divide the set's.
    """
    if wanted < 1 or size % wanted:
        divisors = ", ".join(str(n) for n in range(1, size + 1) if size % n == 0)
        raise UsageError(f"--image-size {wanted}: {name} has {size} pixels a side; choose from {divisors}")
    return size // wanted


def average(images_NCHW: Tensor, factor: int) -> Tensor:
    """Return the means of squares of factor x factor pixels, rounded half to even, as bytes again.

    The sums are integers and the division is rounded once, so every machine gives the same bytes.
    """
    count, channels, height, width = images_NCHW.shape
    squares = images_NCHW.reshape(count, channels, height // factor, factor, width // factor, factor)
    sums = squares.sum(dim=(3, 5), dtype=torch.int32)
    return torch.round(sums / factor**2).to(torch.uint8)
