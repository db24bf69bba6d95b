"""Folders of pictures, one folder a class: what is in them, and one picture at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from calibnorm.errors import UsageError
from calibnorm.lab.data.feed import Augment
from calibnorm.lab.data.seeding import number

RESIZE = 256 / 224
"""The test's short side before the centre crop, in sizes of the crop."""


@dataclass(frozen=True)
class Listing:
    """The pictures below a folder.

    Args:
        folder: Holds one folder a class.
        classes: Their names, in order: the labels.
        names: Each picture's path below the folder, as bytes of one length. One array, as a list of a million Python
            strings would be copied, page by page, into each worker process that counts references to them.
        labels: (N,) in int64.
    """

    folder: Path
    classes: tuple[str, ...]
    names: np.ndarray[Any, np.dtype[np.bytes_]]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> Path:
        """Return where a picture lies."""
        name: str = self.names[index].decode("utf-8", "surrogateescape")
        return self.folder / name


@dataclass(frozen=True)
class Damaged:
    """A picture that cannot be read: workers return it, as an exception of theirs arrives as a page of text."""

    path: Path
    reason: str


def scan(folder: Path) -> Listing:
    """List the pictures of a folder as torchvision's ImageFolder does.

    Raises:
        UsageError: No folder, no folders of classes in it, or a class without pictures.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset  # a second of import

    if not folder.is_dir():
        raise UsageError(f"{folder} is missing: put the pictures there, one folder a class")
    try:
        classes, labels = find_classes(str(folder))
        found = make_dataset(str(folder), labels, IMG_EXTENSIONS)
    except FileNotFoundError as error:  # without any, or with empty ones, which it names
        reason = str(error).splitlines()[0]
        raise UsageError(f"{folder}: put the pictures there, one folder a class ({reason})") from None
    start = len(os.path.join(folder, ""))  # a million paths: relative_to takes five seconds more
    names = np.array([path[start:].encode("utf-8", "surrogateescape") for path, _ in found])
    return Listing(folder, tuple(classes), names, torch.tensor([label for _, label in found]))


class Pictures(Dataset[tuple[Tensor, int] | Damaged]):
    """Pictures by (epoch, index), cut to one size.

    Args:
        listing: The pictures that there are.
        size: Pixels a side of what comes out.
        seed: With epoch and index, it decides crops and flips: the same in whichever process it is asked for.
        augment: "crop_flip": a random part of 8 to 100 % of the area and of 3:4 to 4:3 in shape, resized, and a
            horizontal flip; "crop": without flips; "none": the short side resized to 256 / 224 of the size, and the
            centre.
    """

    def __init__(self, listing: Listing, size: int, seed: int, augment: Augment) -> None:
        from torchvision.transforms import v2

        self._listing, self._seed = listing, seed
        if augment == "none":
            steps: list[torch.nn.Module] = [v2.Resize(round(size * RESIZE)), v2.CenterCrop(size)]
        else:
            steps = [v2.RandomResizedCrop(size)]
            if augment == "crop_flip":
                steps.append(v2.RandomHorizontalFlip())
        self._transform = v2.Compose([*steps, v2.PILToTensor()])

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int] | Damaged:
        """Return a picture, (3, size, size) in uint8, and its label; or which one cannot be read."""
        from PIL import Image

        epoch, index = key
        path = self._listing.path(index)
        try:
            with path.open("rb") as file, Image.open(file) as image:
                colored = image.convert("RGB")
        except Exception as error:  # Pillow has no common class: a damaged file can raise what it likes
            return Damaged(path, f"{type(error).__name__}: {error}")
        # torchvision's transforms draw from torch's global generator; it is put back, as this may be the main process.
        before = torch.default_generator.get_state()
        torch.default_generator.manual_seed(number("picture", self._seed, epoch, index))
        picture: Tensor = self._transform(colored)
        torch.default_generator.set_state(before)
        return picture, int(self._listing.labels[index])


def collate(pictures: Sequence[tuple[Tensor, int] | Damaged]) -> tuple[Tensor, Tensor] | Damaged:
    """Return the batch, or the first picture that cannot be read."""
    whole = []
    for picture in pictures:
        if isinstance(picture, Damaged):
            return picture
        whole.append(picture)
    return torch.stack([image for image, _ in whole]), torch.tensor([label for _, label in whole])
