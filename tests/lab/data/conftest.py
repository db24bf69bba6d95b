"""Small sets in the real formats: idx files, CIFAR's pickles as Python 2 wrote them, folders of pictures."""

from __future__ import annotations

import gzip
import hashlib
import io
import multiprocessing
import struct
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from calibnorm.lab import data
from calibnorm.lab.data import FolderFeeds, ImageSet, Split, mnist
from calibnorm.lab.data.image_set import make

STEMS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def random_split(count: int, channels: int, size: int, classes: int, seed: int) -> Split:
    """Random pixels; every class is there where the count allows."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)
    return Split(images, torch.arange(count)[torch.randperm(count, generator=generator)] % classes)


@pytest.fixture
def color() -> ImageSet:
    """As CIFAR: 3 x 32 x 32, in 10 classes."""
    return make("color", random_split(100, 3, 32, 10, 0), random_split(37, 3, 32, 10, 1), 10)


@pytest.fixture
def gray() -> ImageSet:
    """As MNIST: 1 x 28 x 28, in 4 classes."""
    return make("gray", random_split(64, 1, 28, 4, 2), random_split(16, 1, 28, 4, 3), 4)


def idx_bytes(array: Tensor) -> bytes:
    sizes = b"".join(struct.pack(">I", size) for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.numpy().tobytes()


@dataclass(frozen=True)
class IdxFiles:
    root: Path
    folder: Path
    train: Split
    test: Split

    def content(self, stem: str) -> bytes:
        split = self.train if stem.startswith("train") else self.test
        return idx_bytes(split.images.squeeze(1) if "images" in stem else split.labels.to(torch.uint8))

    def write(self, folder: Path | None = None, packed: bool = False) -> None:
        folder = folder or self.folder
        folder.mkdir(parents=True, exist_ok=True)
        for stem in STEMS:
            content = self.content(stem)
            (folder / f"{stem}.gz").write_bytes(gzip.compress(content)) if packed else (folder / stem).write_bytes(
                content
            )


@pytest.fixture
def fashion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> IdxFiles:
    """A small FashionMNIST, not yet written; its checksums are the known ones, and no Debian package is there."""
    root = tmp_path / "sets"
    files = IdxFiles(
        root, root / "FashionMNIST" / "raw", random_split(50, 1, 28, 10, 4), random_split(20, 1, 28, 10, 5)
    )
    sums = {stem: hashlib.sha256(files.content(stem)).hexdigest() for stem in STEMS}
    monkeypatch.setitem(mnist.SHA256, "FashionMNIST", sums)
    monkeypatch.setattr(mnist, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    return files


def python2_pickle(images: Tensor, labels: list[int], key: str) -> bytes:
    """What Python 2 and its numpy wrote: protocol 2, byte strings, an array with the options 0 and 1 in its type."""
    rows = images.flatten(1)

    def text(value: str) -> bytes:
        return b"U" + bytes([len(value)]) + value.encode()

    def integer(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text("b") + b"\x87R"
        b"(K\x01" + integer(rows.shape[0]) + integer(rows.shape[1]) + b"\x86"
        b"cnumpy\ndtype\n"
        + text("u1")
        + b"K\x00K\x01\x87R(K\x03"
        + text("|")
        + b"NNN"
        + integer(-1)
        + integer(-1)
        + b"K\x00tb"
        b"\x89T" + struct.pack("<i", rows.numel()) + rows.numpy().tobytes() + b"tb"
    )
    numbers = b"](" + b"".join(integer(label) for label in labels) + b"e"
    return b"\x80\x02}(" + text("data") + array + text(key) + numbers + text("batch_label") + text("a batch") + b"u."


class Known:
    """Stands for torchvision's class: names and checksums."""

    base_folder: str
    filename: str
    tgz_md5: str
    train_list: list[list[str]]
    test_list: list[list[str]]


@dataclass(frozen=True)
class CifarFiles:
    root: Path
    files: dict[str, bytes]
    train: Split
    test: Split
    known: type[Known]
    patch: pytest.MonkeyPatch

    @property
    def folder(self) -> Path:
        return self.root / self.known.base_folder

    @property
    def archive(self) -> Path:
        return self.root / self.known.filename

    def write(self) -> None:
        self.folder.mkdir(parents=True)
        for name, content in self.files.items():
            (self.folder / name).write_bytes(content)

    def know(self, name: str, content: bytes) -> None:
        """Make a file's content the known one."""
        for attribute in ("train_list", "test_list"):
            pairs = getattr(self.known, attribute)
            self.patch.setattr(self.known, attribute, [[n, md5(content) if n == name else m] for n, m in pairs])

    def write_archive(self, members: list[tarfile.TarInfo] | None = None, known: bool = True) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        with tarfile.open(self.archive, "w:gz") as tar:
            for member in members or []:
                tar.addfile(member)
            for name, content in self.files.items():
                path = f"{self.known.base_folder}/{name}"
                if path in tar.getnames():
                    continue
                member = tarfile.TarInfo(path)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        if known:
            self.patch.setattr(self.known, "tgz_md5", md5(self.archive.read_bytes()))


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def cifar_files(root: Path, patch: pytest.MonkeyPatch, known: type[Known], classes: int, key: str) -> CifarFiles:
    names = {"train": [name for name, _ in known.train_list], "test": [name for name, _ in known.test_list]}
    each = 2 * classes // len(names["train"])
    train, test = random_split(2 * classes, 3, 32, classes, 6), random_split(classes, 3, 32, classes, 7)
    files = {
        name: python2_pickle(
            train.images[i * each : (i + 1) * each], train.labels[i * each : (i + 1) * each].tolist(), key
        )
        for i, name in enumerate(names["train"])
    }
    files[names["test"][0]] = python2_pickle(test.images, test.labels.tolist(), key)
    made = CifarFiles(root, files, train, test, known, patch)
    for name, content in files.items():
        made.know(name, content)
    return made


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CifarFiles:
    from torchvision.datasets import CIFAR10

    return cifar_files(tmp_path / "sets", monkeypatch, CIFAR10, 10, "labels")


@pytest.fixture
def cifar100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CifarFiles:
    from torchvision.datasets import CIFAR100

    return cifar_files(tmp_path / "sets", monkeypatch, CIFAR100, 100, "fine_labels")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three classes of 8 training and 3 validation pictures, of several sizes, modes and formats."""
    root = tmp_path / "folders"
    generator = torch.Generator().manual_seed(8)
    for part, count in (("train", 8), ("val", 3)):
        for label, name in enumerate(("cat", "dog", "fox")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                shape = (36 + 4 * index, 60 - 5 * label, 3)
                image = Image.fromarray(torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).numpy())
                mode = ("RGB", "L", "CMYK", "P")[index % 4]
                suffix = "jpg" if mode == "CMYK" else "png"
                image.convert(mode).save(folder / f"{part}{index}.{suffix}")
    return root


@pytest.fixture
def feeds(pictures: Path) -> Iterator[object]:
    """Make feeds that end with the test."""
    made = []

    def make(**changes: object) -> FolderFeeds:
        options = {
            "name": "folders",
            "root": pictures,
            "batch_size": 5,
            "seed": 0,
            "device": "cpu",
            "size": 32,
            "workers": 0,
            **changes,
        }
        made.append(data.folder_feeds(options.pop("name"), options.pop("root"), **options))
        return made[-1]

    yield make
    for both in made:
        both.train.close()
        both.test.close()
    assert not multiprocessing.active_children()
