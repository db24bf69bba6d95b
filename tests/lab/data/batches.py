"""Feeds of sets in memory, their epochs, and whether two of them are the same."""

from __future__ import annotations

import torch
from torch import Tensor

from calibnorm.lab import data
from calibnorm.lab.data import Feed, ImageSet

Batch = tuple[Tensor, Tensor]


def train_feed(images: ImageSet, **changes: object) -> Feed:
    return data.train_feed(images, **{"batch_size": 12, "seed": 0, "device": "cpu", **changes})


def epoch(feed: Feed, number: int) -> list[Batch]:
    feed.set_epoch(number)
    return list(feed)


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True)
    )


def order(batches: list[Batch]) -> Tensor:
    return torch.cat([labels for _, labels in batches])


def numbered(images: ImageSet) -> ImageSet:
    """Return the set with each training image's number as its label."""
    count = len(images.train)
    return data.image_set.make("numbered", data.Split(images.train.images, torch.arange(count)), images.test, count)
