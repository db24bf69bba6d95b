"""Photographs and textures that come inside scikit-learn and scikit-image: real material without a download."""

from __future__ import annotations

from functools import cache
from pathlib import Path

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


def path_of(name: str) -> Path:
    """Return the file of a picture; a name that is not among `NAMES` is a KeyError.

    >>> path_of("coffee").name
    'coffee.png'
    """
    import skimage  # half a second of import for each
    import sklearn.datasets

    if name in SKLEARN:
        return Path(sklearn.datasets.__file__).parent / SKLEARN[name]
    return Path(skimage.__file__).parent / "data" / SKIMAGE[name]


@cache
def photograph(name: str) -> Tensor:
    """Return a picture (3, H, W) in uint8; a name that is not among `NAMES` is a KeyError.

    >>> photograph("coffee").shape
    torch.Size([3, 400, 600])
    """
    from calibnorm.lab.data.pictures import pixels_of, read_picture  # which imports what lists the sets, and so this

    return pixels_of(read_picture(path_of(name)))
