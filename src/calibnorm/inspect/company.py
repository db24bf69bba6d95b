"""Which images are looked at, and with which others they share a batch."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from calibnorm.inspect.evaluating import Images, batches_of


@dataclass(frozen=True)
class Pool:
    """Some images of a data set, with their labels where there are any.

    Args:
        images: (N, ...).
        labels: (N, ...), or None.
    """

    images: Tensor
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.images)

    def batches(self) -> Images:
        """Return the pool as the batches that :meth:`read` takes."""
        return self.images if self.labels is None else [(self.images, self.labels)]

    @classmethod
    def read(cls, images: Images, size: int, seed: int, device: torch.device | None) -> Pool:
        """Choose so many images of all batches with equal chances, in memory for two times as many and a batch.

        Raises:
            TypeError: A batch is, or begins with, something else than a tensor.
            ValueError: There is no batch.
        """
        draw = random.Random(seed)  # an image at a time: however they come in batches
        keys, kept, marks = torch.empty(0, dtype=torch.float64), torch.empty(0), torch.empty(0)
        labelled = True
        for first, rest in batches_of(images):
            labels = rest[0] if rest and isinstance(rest[0], Tensor) and rest[0].shape[:1] == first.shape[:1] else None
            labelled = labelled and labels is not None
            keys = torch.cat([keys, torch.tensor([draw.random() for _ in first], dtype=torch.float64)])
            kept = first if not len(kept) else torch.cat([kept, first.to(kept.device)])
            if labelled:
                assert labels is not None
                marks = labels if not len(marks) else torch.cat([marks, labels.to(marks.device)])
            chosen = keys.argsort()[:size]
            keys, kept = keys[chosen], kept[chosen.to(kept.device)]
            marks = marks[chosen.to(marks.device)] if labelled else marks
        place = kept.device if device is None else device
        return cls(kept.to(place), marks.to(place) if labelled else None)


@dataclass(frozen=True)
class Batches:
    """The batches that a probe image is put into.

    Args:
        size: Images in a batch.
        company: (probes, draws, size - 1), the numbers of the other images.
    """

    size: int
    company: Tensor

    @classmethod
    def drawn(cls, size: int, probes: int, draws: int, pool: int, seed: int, device: torch.device) -> Batches:
        """Draw the company of the pool's first images: independently, with replacement, from all other images."""
        draw = torch.Generator().manual_seed(seed + size)
        others = torch.randint(pool - 1, (probes, draws, size - 1), generator=draw)
        others += others >= torch.arange(probes)[:, None, None]  # not the probe itself
        return cls(size, others.to(device))

    def __iter__(self) -> Iterator[Iterator[Tensor]]:
        """Yield for every probe its batches, each (size,): the probe itself first."""
        for probe, draws in enumerate(self.company):
            yield (torch.cat([others.new_tensor([probe]), others]) for others in draws)


def rows(value: Any, chosen: Tensor, count: int) -> Any:
    """Return what belongs to the chosen images of a batch of ``count``; what is not of a batch stays as it is.

    An image may have several rows, as where an attention's windows are laid behind each other.
    """
    if not isinstance(value, Tensor) or value.ndim < 2 or len(value) % count:
        return value
    return value.detach().reshape(count, len(value) // count, *value.shape[1:])[chosen].flatten(0, 1)
