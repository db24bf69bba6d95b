"""COCO's panoptic PNGs: the id of a pixel's segment is R + 256 G + 256^2 B."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

LARGEST = 256**3 - 1


def colored(ids: Tensor) -> Image.Image:
    """Return the picture of segment ids (H, W).

    >>> colored(torch.tensor([[258]])).getpixel((0, 0))
    (2, 1, 0)
    """
    from PIL import Image

    parts = torch.stack([ids % 256, ids // 256 % 256, ids // 256**2], 2)
    return Image.fromarray(parts.to(torch.uint8).numpy())


def ids_of(pixels: Tensor) -> Tensor:
    """Return the segment ids (H, W) in int64 of a picture (3, H, W) in uint8."""
    red, green, blue = pixels.long()
    ids: Tensor = red + 256 * green + 256**2 * blue
    return ids
