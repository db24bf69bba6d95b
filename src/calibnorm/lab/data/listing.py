"""Which pictures a folder holds, one folder a class, and which of its files are none."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calibnorm.errors import UsageError
from calibnorm.lab.data.contents import Part, digest

HIDDEN, BESIDE, OTHER = "hidden", "beside the folders of classes", "without a picture's ending"
"""Why a file is left out."""


@dataclass(frozen=True)
class Listing:
    """The pictures below a folder.

    Args:
        folder: Holds one folder a class.
        classes: Their names, in order: the labels.
        names: Each picture's path below the folder, as bytes of one length. One array, as a list of a million Python
            strings would be copied, page by page, into each worker process that counts references to them.
        labels: (N,) in int64.
        part: How many there are of each class, and what was left out.
    """

    folder: Path
    classes: tuple[str, ...]
    names: np.ndarray[Any, np.dtype[np.bytes_]]
    labels: Tensor
    part: Part

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> Path:
        """Return where a picture lies."""
        name: str = self.names[index].decode("utf-8", "surrogateescape")
        return self.folder / name


class _LeftOut(dict[str, tuple[int, str]]):
    """By reason, how many files are left out, and the first of them."""

    def add(self, reason: str, path: str) -> None:
        count, first = self.get(reason, (0, path))
        self[reason] = count + 1, first


def scan(folder: Path) -> Listing:
    """List the pictures of a folder: classes and pictures in the order of torchvision's ImageFolder.

    What is hidden, by a name that begins with a dot, is no class and no picture, unlike torchvision's; so
    ``.ipynb_checkpoints`` and ``._cat.jpg`` are left out. A picture is what has a picture's ending.

    Raises:
        UsageError: No folder, no folders of classes in it, or a class without pictures.
        OSError: A folder that cannot be looked into.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is missing: put the pictures there, one folder a class")
    classes, names, left_out = [], [], _LeftOut()
    images, digests = dict[str, int](), dict[str, str]()
    for name in sorted(os.listdir(folder)):
        if name.startswith(".") or not (folder / name).is_dir():
            left_out.add(HIDDEN if name.startswith(".") else BESIDE, name)
            continue
        found = list(_pictures(folder, name, left_out))
        images[name], digests[name] = len(found), digest(_lines(folder, found))
        classes.append(name)
        names += found
    if not classes:
        raise UsageError(f"{folder}: put the pictures there, one folder a class (it holds no folder)")
    if empty := [name for name, count in images.items() if not count]:
        which, rest = folder / empty[0], f" ({len(empty)} such folders)" if len(empty) > 1 else ""
        raise UsageError(f"{which}: holds no {', '.join(_endings())}{rest}; put pictures there, or remove the folder")
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor(list(images.values())))
    return Listing(folder, tuple(classes), np.array(names), labels, Part(images, digests, dict(left_out)))


def listed(paths: Sequence[Path], name: str) -> Listing:
    """Return a listing of files from anywhere, as one class.

    Args:
        paths: The files.
        name: What the class is called.
    """
    names = [os.fsencode(path.absolute()) for path in paths]
    lines = (b"%b\0%d\n" % (os.fsencode(path.name), path.stat().st_size) for path in paths)
    part = Part({name: len(names)}, {name: digest(lines)})
    return Listing(Path(), (name,), np.array(names), torch.zeros(len(names), dtype=torch.int64), part)


def pictures_below(folder: Path) -> list[Path]:
    """Return the pictures of a folder and of the folders in it, in the order of their names; hidden ones are left out.

    Raises:
        OSError: A folder that cannot be looked into.
    """
    names = _pictures(folder.absolute().parent, folder.absolute().name, _LeftOut())
    return [folder.absolute().parent / os.fsdecode(name) for name in names]


def named(places: Sequence[Path]) -> Iterator[tuple[Path, list[Path]]]:
    """Yield every place that somebody has named, with its pictures: those of a folder, or the file itself.

    Raises:
        UsageError: It is not there, cannot be looked into, or is a folder without pictures.
    """
    for place in places:
        if not place.exists():
            raise UsageError(f"{place}: is not there")
        try:
            paths = pictures_below(place) if place.is_dir() else [place]
        except OSError as error:
            raise UsageError(f"{error.filename}: cannot be looked into ({error.strerror})") from error
        if not paths:
            raise UsageError(f"{place}: holds no picture")
        yield place, paths


def _pictures(folder: Path, name: str, left_out: _LeftOut) -> Iterator[bytes]:
    """Yield the path below the folder of each picture of a class, in the order of torchvision's ImageFolder."""
    start, endings = len(os.path.join(folder, "")), _endings()  # a million paths: relative_to takes five seconds more
    for place, files in sorted(_places(os.path.join(folder, name), start, left_out)):
        for file in sorted(files):
            path = os.path.join(place, file)[start:]
            if file.startswith("."):
                left_out.add(HIDDEN, path)
            elif file.lower().endswith(endings):
                yield path.encode("utf-8", "surrogateescape")
            else:
                left_out.add(OTHER, path)


def _places(folder: str, start: int, left_out: _LeftOut) -> Iterator[tuple[str, list[str]]]:
    """Yield a folder and those in it that are not hidden, each with the names of its files."""

    def fail(error: OSError) -> None:
        raise error

    for place, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        for hidden in [name for name in folders if name.startswith(".")]:
            folders.remove(hidden)
            left_out.add(HIDDEN, os.path.join(place, hidden)[start:])
        yield place, files


def _lines(folder: Path, names: list[bytes]) -> Iterator[bytes]:
    """Yield a line for each picture, its path and its size; -1 is that of a link that leads nowhere."""
    start = os.fsencode(os.path.join(folder, ""))
    for name in names:
        path = start + name
        yield b"%b\0%d\n" % (name, os.path.getsize(path) if os.path.exists(path) else -1)


def _endings() -> tuple[str, ...]:
    from torchvision.datasets.folder import IMG_EXTENSIONS  # a second of import

    endings: tuple[str, ...] = IMG_EXTENSIONS
    return endings
