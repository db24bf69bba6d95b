"""Small tasks of real pictures at 96 x 96 pixels, made of what package installs bring: to fine-tune networks on.

Every picture is a function of its number alone. Training and test pictures share no item, no half of a photograph and
no handwriting.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from calibnorm.lab.data import digits, mnist
from calibnorm.lab.data.image_set import Split, balanced
from calibnorm.lab.data.photographs import NAMES, photograph
from calibnorm.lab.data.seeding import generator

SIZE = 96
COUNTS = {"train": 2000, "test": 1000}
"""Pictures of each part, but for the digits, of which there are 1198 and 599."""

Draw = Callable[..., Tensor]


def read_fashion_colours(root: Path) -> tuple[Split, Split]:
    """Return items of FashionMNIST, enlarged, each in a colour of its own before another colour."""

    def part(images: Split, name: str) -> Split:
        rows = balanced(images.labels, 10, COUNTS[name], seed=0)
        random = generator(f"fashion colours {name}", 0)
        grey = _enlarged(images.images[rows], SIZE)
        item = 0.2 + 0.8 * torch.rand(len(rows), 3, 1, 1, generator=random)
        ground = torch.rand(len(rows), 3, 1, 1, generator=random)
        return Split(_bytes(grey * item + (1 - grey) * ground), images.labels[rows])

    train, test = mnist.read_fashion_mnist(root)
    return part(train, "train"), part(test, "test")


def read_patches(root: Path) -> tuple[Split, Split]:
    """Return patches of photographs and textures, turned, mirrored and scaled; the label is the picture's.

    Training patches come from the left part of each picture, test patches from the right.
    """

    def part(name: str) -> Split:
        random, labels = generator(f"patches {name}", 0), torch.arange(COUNTS[name]) % len(NAMES)
        pictures = [patch(_half(photograph(NAMES[label]), name), random) for label in labels]
        return Split(torch.stack(pictures), labels)

    return part("train"), part("test")


def read_pasted_digits(root: Path) -> tuple[Split, Split]:
    """Return scikit-learn's digits, in colour, somewhere on a patch of a photograph or a texture."""

    def part(images: Split, name: str) -> Split:
        random = generator(f"pasted digits {name}", 0)
        pictures = []
        for ink in images.images:
            source = NAMES[int(torch.randint(len(NAMES), (), generator=random))]
            ground = patch(_half(photograph(source), name), random) / 255
            side = int(torch.randint(SIZE // 2, SIZE, (), generator=random))
            top, left = (int(torch.randint(SIZE - side + 1, (), generator=random)) for _ in range(2))
            colour = torch.randint(2, (3, 1, 1), generator=random).float()
            drawn, place = (
                _enlarged(ink[None], side)[0],
                (slice(None), slice(top, top + side), slice(left, left + side)),
            )
            ground[place] = drawn * colour + (1 - drawn) * ground[place]
            pictures.append(_bytes(ground))
        return Split(torch.stack(pictures), images.labels)

    train, test = digits.read(root)
    return part(train, "train"), part(test, "test")


def patch(picture: Tensor, random: torch.Generator) -> Tensor:
    """Return a square of a picture as (3, SIZE, SIZE): 64 to 160 pixels a side, turned by right angles, maybe mirrored.

    Args:
        picture: (3, H, W) in uint8.
        random: What place, size and turn come from.
    """
    high, wide = picture.shape[1:]
    side = int(torch.randint(64, min(160, high, wide) + 1, (), generator=random))
    top, left = (int(torch.randint(n - side + 1, (), generator=random)) for n in (high, wide))
    turns, mirrored = (int(torch.randint(n, (), generator=random)) for n in (4, 2))
    square = picture[None, :, top : top + side, left : left + side].float()
    turned = interpolate(square, size=(SIZE, SIZE), mode="bilinear", antialias=True)[0].rot90(turns, (1, 2))
    return _bytes((turned.flip(2) if mirrored else turned) / 255)


def _half(picture: Tensor, name: str) -> Tensor:
    middle = picture.shape[2] // 2
    return picture[:, :, :middle] if name == "train" else picture[:, :, middle:]


def _enlarged(grey: Tensor, side: int) -> Tensor:
    """Return images (N, 1, H, W) of bytes as (N, 1, side, side) from 0 to 1."""
    return interpolate(grey / 255, size=(side, side), mode="bilinear", antialias=True)


def _bytes(pictures: Tensor) -> Tensor:
    return (255 * pictures).round().clamp(0, 255).to(torch.uint8)
