"""Augmentation of whole batches on the device that holds them, without a loop over images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

PADDING = 4
"""Black pixels on each side before a crop of the original size: what is usual on CIFAR (IEBN's: "standard")."""


@dataclass(frozen=True)
class Shifts:
    """What was drawn for a run of images.

    Args:
        top: (N,) in int64, the crop's first row in the padded image, 0 to 2 * PADDING.
        left: (N,) in int64, its first column.
        mirrored: (N,) in bool, left and right exchanged after the crop.
    """

    top: Tensor
    left: Tensor
    mirrored: Tensor

    @staticmethod
    def draw(count: int, generator: torch.Generator, *, flip: bool) -> Shifts:
        """Draw uniform crops and, where asked, fair flips."""
        top, left = torch.randint(0, 2 * PADDING + 1, (2, count), generator=generator)
        coins = torch.randint(0, 2, (count,), generator=generator)  # drawn always: a crop is the same without flips
        return Shifts(top, left, (coins == 1) & flip)

    def to(self, device: torch.device) -> Shifts:
        """Return the same numbers on a device."""
        return Shifts(self.top.to(device), self.left.to(device), self.mirrored.to(device))

    def __getitem__(self, rows: slice) -> Shifts:
        return Shifts(self.top[rows], self.left[rows], self.mirrored[rows])


def crop_flip(images_NCHW: Tensor, shifts: Shifts) -> Tensor:
    """Pad with black, crop to the original size at the drawn place, mirror the drawn images.

    One gather with an index of (N, H * W) that all channels share. For 128 x 1 x 28 x 28 bytes on one CPU core this
    takes 0.28 ms; indexing a view of all windows takes 0.39, a loop over the images 0.93 (0.71, 1.17 and 1.18 for
    128 x 3 x 32 x 32).

    Args:
        images_NCHW: Any dtype; 0 is black.
        shifts: For these N images, on their device.
    """
    count, channels, height, width = images_NCHW.shape
    padded = pad(images_NCHW, (PADDING,) * 4).flatten(2)
    across = torch.arange(width, device=images_NCHW.device)
    across = torch.where(shifts.mirrored[:, None], width - 1 - across, across) + shifts.left[:, None]
    down = torch.arange(height, device=images_NCHW.device) + shifts.top[:, None]
    index = down[:, :, None] * (width + 2 * PADDING) + across[:, None, :]
    index = index.view(count, 1, height * width).expand(count, channels, height * width)
    return padded.gather(2, index).view(images_NCHW.shape)


def standardize(images_NCHW: Tensor, mean_C11: Tensor, std_C11: Tensor) -> Tensor:
    """Return (images - mean) / std in float32; mean and std are those of the bytes, 0 to 255.

    A subtraction and a division, each rounded once as IEEE 754 says, so that the bits do not depend on the device.
    """
    return images_NCHW.to(torch.float32).sub_(mean_C11).div_(std_C11)
