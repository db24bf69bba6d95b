"""MNIST and FashionMNIST: idx files, plain or packed, in root or in Debian's package; damaged ones are named."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch
from torchvision.datasets import FashionMNIST

from calibnorm.errors import UsageError
from calibnorm.lab import data
from calibnorm.lab.data import idx, mnist
from calibnorm.lab.data.image_set import Split

TRAIN_IMAGES = "train-images-idx3-ubyte"


def assert_equal(actual: Split, expected: Split) -> None:
    assert torch.equal(actual.images, expected.images)
    assert torch.equal(actual.labels, expected.labels)


@pytest.mark.parametrize("packed", [False, True])
def test_reads_from_where_torchvision_keeps_it(fashion, packed):
    fashion.write(packed=packed)
    images = data.load("fashion_mnist", fashion.root)
    assert_equal(images.train, fashion.train)
    assert_equal(images.test, fashion.test)
    assert (images.classes, images.channels, images.size) == (10, 1, 28)
    pixels = fashion.train.images.double() / 255
    assert images.mean == pytest.approx((pixels.mean().item(),), rel=1e-12)
    assert images.std == pytest.approx((pixels.std(correction=0).item(),), rel=1e-12)


def test_torchvision_reads_the_same(fashion):
    fashion.write()
    theirs = FashionMNIST(str(fashion.root), train=False)
    assert_equal(data.load("fashion_mnist", fashion.root).test, Split(theirs.data.unsqueeze(1), theirs.targets))


def test_debians_package_where_root_has_none(fashion):
    fashion.write(mnist.DEBIAN_FASHION_MNIST, packed=True)
    assert_equal(data.load("fashion_mnist", fashion.root).train, fashion.train)
    with pytest.raises(UsageError, match="MNIST is missing"):
        data.load("mnist", fashion.root)  # is not FashionMNIST


def test_root_comes_before_debians_package(fashion):
    """A damaged file in root is said, not passed over."""
    fashion.write(mnist.DEBIAN_FASHION_MNIST, packed=True)
    fashion.write()
    (fashion.folder / TRAIN_IMAGES).write_bytes(b"")
    with pytest.raises(UsageError, match=str(fashion.folder)):
        data.load("fashion_mnist", fashion.root)


def test_missing_set_says_what_goes_where(fashion):
    with pytest.raises(UsageError) as error:
        data.load("fashion_mnist", fashion.root)
    assert str(error.value) == (
        "FashionMNIST is missing: download train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, "
        f"t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz from {FashionMNIST.mirrors[-1]} into {fashion.folder}, "
        "or install Debian's package dataset-fashion-mnist"
    )


def test_missing_file_is_named(fashion):
    fashion.write()
    (fashion.folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(UsageError) as error:
        data.load("fashion_mnist", fashion.root)
    assert str(error.value) == (
        f"FashionMNIST is not complete: download t10k-labels-idx1-ubyte.gz from {FashionMNIST.mirrors[-1]} into "
        f"{fashion.folder}, or install Debian's package dataset-fashion-mnist"
    )


def tampered(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"", "begins with nothing"),
        (lambda content: content[:10], "no idx file"),
        (lambda content: content[:-1], "its header, 50 x 28 x 28, says 39216"),
        (lambda content: content + b"\0", "has 39217 bytes"),
        (lambda content: content[:4] + b"\xff" * 4 + content[8:], "its header, 4294967295 x 28 x 28"),
        (lambda content: b"\0\0\x0d\x03" + content[4:], "begins with 00000d03, not 00000803"),
        (lambda content: b"\0\0\x08\x01" + content[4:], "begins with 00000801"),
        (lambda content: b"\x93NUMPY\x01\x00" + content, "begins with 934e554d"),
        (lambda content: b"PK\x03\x04" + content, "begins with 504b0304"),  # a .pt file
        (tampered, "not the original"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_damaged_file_is_named(fashion, damage, message, packed):
    fashion.write(packed=packed)
    content = damage(fashion.content(TRAIN_IMAGES))
    path = fashion.folder / (f"{TRAIN_IMAGES}.gz" if packed else TRAIN_IMAGES)
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(UsageError, match=message) as error:
        data.load("fashion_mnist", fashion.root)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def flipped_bit(packed: bytes) -> bytes:
    middle = len(packed) // 2
    return packed[:middle] + bytes([packed[middle] ^ 4]) + packed[middle + 1 :]


@pytest.mark.parametrize("damage", [lambda packed: packed[: len(packed) // 2], flipped_bit, lambda packed: b"no gzip"])
def test_damaged_packed_file_is_named(fashion, damage):
    fashion.write(packed=True)
    path = fashion.folder / f"{TRAIN_IMAGES}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UsageError, match="put the original file there") as error:
        data.load("fashion_mnist", fashion.root)
    assert str(error.value).startswith(f"{path}: ")


def test_a_packed_file_cannot_fill_the_memory(fashion, monkeypatch):
    fashion.write(packed=True)
    monkeypatch.setattr(idx, "LARGEST", 30_000)
    with pytest.raises(UsageError, match="more than 30000 bytes"):
        data.load("fashion_mnist", fashion.root)


@pytest.mark.skipif(not mnist.DEBIAN_FASHION_MNIST.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_real_set():
    images = data.load("fashion_mnist", Path("nowhere"), train_images=25)
    assert [len(images.train), len(images.test)] == [25, 10_000]
    assert images.test.labels.bincount().tolist() == [1000] * 10
    assert images.train.labels.bincount().tolist() == [3] * 5 + [2] * 5
    train, _ = mnist.read_fashion_mnist(Path("nowhere"))
    assert train.labels.bincount().tolist() == [6000] * 10
    whole = data.image_set.make("fashion_mnist", train, images.test, 10)
    # The statistics that everybody quotes.
    assert [round(whole.mean[0], 4), round(whole.std[0], 4)] == [0.2860, 0.3530]
