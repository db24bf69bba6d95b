"""Real handwriting: the 1797 digits of 8 x 8 pixels that come inside scikit-learn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from calibnorm.lab.data import digits


@dataclass(frozen=True)
class Digits:
    """Images (N, 1, 8, 8) in float32 and labels (N,), split in two.

    Args:
        train_images: Standardized by their own mean and standard deviation.
        train_labels: 0 to 9.
        test_images: Standardized by the training images' mean and standard deviation.
        test_labels: 0 to 9, in the same proportions as the training labels.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def steps(self, batch_size: int) -> int:
        """Return the number of whole batches in an epoch."""
        return len(self.train_images) // batch_size

    def batches(self, batch_size: int, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield an epoch's whole batches, in an order that seed and epoch alone determine."""
        generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
        order = torch.randperm(len(self.train_images), generator=generator)
        for rows in order[: self.steps(batch_size) * batch_size].view(-1, batch_size):
            yield self.train_images[rows], self.train_labels[rows]


def load() -> Digits:
    """Return the digits with a stratified split; statistics come from the training images alone."""
    parts = digits.split()
    mean, std = parts.train_images.mean(), parts.train_images.std()

    def images(array: object) -> Tensor:
        standardized: Tensor = (torch.as_tensor(array) - mean) / std
        return standardized.to(torch.float32).unsqueeze(1)

    return Digits(
        images(parts.train_images),
        torch.as_tensor(parts.train_labels),
        images(parts.test_images),
        torch.as_tensor(parts.test_labels),
    )
