"""CIFAR-10 and CIFAR-100 from the archive of their python version, unpacked or not."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calibnorm.errors import UsageError
from calibnorm.lab.data.image_set import Split

_OBJECTS = "airplane automobile bird cat deer dog frog horse ship truck"
_FINE = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
"""
CIFAR10, CIFAR100 = tuple(_OBJECTS.split()), tuple(_FINE.split())
"""What the labels mean, in their order; CIFAR-100's are the fine ones."""


def read_cifar10(root: Path) -> tuple[Split, Split]:
    """Return CIFAR-10's training and test images from where torchvision keeps them, or from the archive in root."""
    from torchvision.datasets import CIFAR10  # a second of import

    return _read("CIFAR-10", CIFAR10, "labels", root)


def read_cifar100(root: Path) -> tuple[Split, Split]:
    """Return CIFAR-100's, with the fine labels."""
    from torchvision.datasets import CIFAR100

    return _read("CIFAR-100", CIFAR100, "fine_labels", root)


def _read(title: str, known: Any, labels: str, root: Path) -> tuple[Split, Split]:
    """Read the set's files, each checked against the checksum that torchvision knows before it is unpickled."""
    folder, archive = root / known.base_folder, root / known.filename
    if folder.is_dir():
        where, content = folder, _from_folder(folder)
    elif archive.is_file():
        where, content = archive, _from_archive(archive, known)
    else:
        raise UsageError(f"{title} is missing: download {known.url} into {root.absolute()} (it need not be unpacked)")

    def part(files: list[list[str]]) -> Split:
        images, targets = [], []
        for name, md5 in files:
            stored = content(name)
            if (found := _md5(stored)) != md5:
                reason = f"{name} is not the original (MD5 {found}, not {md5})"
                raise UsageError(f"{where}: {reason}; download {known.filename} again")
            entry = _Arrays(io.BytesIO(stored), encoding="latin1").load()
            images.append(np.asarray(entry["data"], dtype=np.uint8).reshape(-1, 3, 32, 32))
            targets += entry[labels]
        return Split(torch.from_numpy(np.concatenate(images)), torch.tensor(targets, dtype=torch.int64))

    return part(known.train_list), part(known.test_list)


class _Arrays(pickle.Unpickler):
    """Unpickles arrays and what Python builds in, and calls nothing else: a second wall behind the checksums."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what the originals ask for, in today's numpy, and refuse everything else."""
        if module.startswith("numpy.") and name == "_reconstruct":  # its module has another name in numpy 2
            return np.empty(0).__reduce__()[0]
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):  # the files have 0 and 1 where numpy 2.4 warns of all but bool
            return lambda kind, align, copy: np.dtype(kind, align=bool(align), copy=bool(copy))
        raise UsageError(f"a CIFAR file asks for {module}.{name}, which no original does; download the set again")


def _from_folder(folder: Path) -> Callable[[str], bytes]:
    def content(name: str) -> bytes:
        try:
            return (folder / name).read_bytes()
        except OSError as error:
            raise UsageError(f"{folder / name}: cannot be read ({error.strerror}); unpack the archive again") from None

    return content


def _from_archive(archive: Path, known: Any) -> Callable[[str], bytes]:
    """Return a function that reads a file out of the archive, in memory: nothing is unpacked to the disk."""
    stored = archive.read_bytes()
    if (found := _md5(stored)) != known.tgz_md5:
        reason = f"not the original (MD5 {found}, not {known.tgz_md5}), or not whole"
        raise UsageError(f"{archive}: {reason}; download it again")

    def content(name: str) -> bytes:
        try:
            with tarfile.open(fileobj=io.BytesIO(stored)) as tar:
                file = tar.extractfile(f"{known.base_folder}/{name}")  # follows a link inside the archive alone
                if file is None:
                    raise KeyError("no plain file")
                return file.read()
        except (tarfile.TarError, OSError, EOFError, zlib.error, KeyError) as error:
            raise UsageError(f"{archive}: {name} cannot be read ({error}); download it again") from None

    return content


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
