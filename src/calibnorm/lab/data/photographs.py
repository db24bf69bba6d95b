"""Photographs and textures that come inside scikit-learn and scikit-image: real material without a download."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

# The files themselves are read: skimage.data's functions ask the network about some of them.
SKLEARN = {"china": "images/china.jpg", "flower": "images/flower.jpg"}
SKIMAGE = {
    "astronaut": "astronaut.png",
    "brick": "brick.png",
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "coins": "coins.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "hubble": "hubble_deep_field.jpg",
    "moon": "moon.png",
    "motorcycle": "motorcycle_left.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
    "tissue": "ihc.png",
}
NAMES: tuple[str, ...] = tuple(sorted(SKLEARN | SKIMAGE))
"""The pictures there are. Brick, coins, grass, gravel and moon are grey: three equal channels."""


@cache
def photograph(name: str) -> Tensor:
    """Return a picture (3, H, W) in uint8; a name that is not among `NAMES` is a KeyError.

    >>> photograph("coffee").shape
    torch.Size([3, 400, 600])
    """
    import numpy as np
    import skimage  # half a second of import for each
    import sklearn.datasets

    from calibnorm.lab.data.pictures import read_picture  # which imports what lists the sets, and so this module

    if name in SKLEARN:
        path = Path(sklearn.datasets.__file__).parent / SKLEARN[name]
    else:
        path = Path(skimage.__file__).parent / "data" / SKIMAGE[name]
    return torch.from_numpy(np.array(read_picture(path))).permute(2, 0, 1)
