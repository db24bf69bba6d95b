"""What is said of damaged pictures, missing folders and options that cannot be."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from calibnorm.errors import UsageError
from calibnorm.lab.data import folders
from lab.data.batches import epoch


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", ["empty", "cut", "text", "gone"])
def test_damaged_picture_is_named(feeds, pictures, workers, damage):
    feed = feeds(workers=workers).train
    path = pictures / "train" / "dog" / "train2.jpg"
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "text": b"<html>404", "gone": b""}[damage])
    if damage == "gone":
        path.unlink()
    with pytest.raises(UsageError) as error:
        [epoch(feed, number) for number in range(10)]  # one of them has the picture
    assert str(error.value).startswith(f"{path}: no picture that can be read (")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("nested", [False, True])
def test_found_in_root_or_below(feeds, pictures, nested):
    assert len(feeds(root=pictures.parent if nested else pictures).train) == 4


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        (
            "imagenet",
            "download ILSVRC2012 (its archives img_train, img_val and devkit_t12) and unpack the pictures into "
            "{root}/imagenet/train/CLASS/ and val/CLASS/",
        ),
        (
            "folders",
            "put pictures into {root}/folders/train/CLASS/ and val/CLASS/, a folder for each class and the same ones "
            "in both; or name the folder that holds train and val as the data_root",
        ),
    ],
)
def test_missing_set_says_what_goes_where(feeds, tmp_path, name, remedy):
    root = tmp_path / "empty"
    with pytest.raises(UsageError) as error:
        feeds(name=name, root=root)
    assert str(error.value) == f"data={name}: is missing; {remedy.format(root=root)}"


def test_archives_that_are_not_unpacked(feeds, tmp_path):
    root = tmp_path / "packed"
    root.mkdir()
    (root / "ILSVRC2012_img_train.tar").write_bytes(b"")
    with pytest.raises(
        UsageError, match=r"are not unpacked: run python -c \"from torchvision.datasets import ImageNet"
    ):
        feeds(name="imagenet", root=root)


def empty_class(root: Path) -> None:
    (root / "train" / "elk").mkdir()
    (root / "val" / "elk").mkdir()


def other_class(root: Path) -> None:
    (root / "val" / "cat").rename(root / "val" / "elk")


def flat_validation(root: Path) -> None:
    for path in list((root / "val").glob("*/*.png")):
        path.rename(root / "val" / f"{path.parent.name}{path.name}")
    for folder in [path for path in (root / "val").iterdir() if path.is_dir()]:
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (empty_class, "/train/elk: holds no .jpg, .*; put pictures there, or remove the folder"),
        (other_class, r"/train has a class 'cat' that .*/val has not \(2 such classes\); both need the same folders"),
        (flat_validation, "/val: put the pictures there, one folder a class .*it holds no folder"),
        (lambda root: shutil.rmtree(root / "val"), "/val is missing: put the pictures there, one folder a class"),
    ],
)
def test_folders_that_cannot_be_used(feeds, pictures, spoil, message):
    spoil(pictures)
    with pytest.raises(UsageError, match=message) as error:
        feeds()
    assert "\n" not in str(error.value)


def test_a_folder_that_must_not_be_looked_into(feeds, monkeypatch, pictures):
    def denied(folder: Path) -> folders.Listing:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(folders, "scan", denied)
    with pytest.raises(UsageError, match=f"data=folders: {pictures}/train: Permission denied"):
        feeds()


def test_refused_options(feeds):
    for changes, message in (
        ({"name": "imagenet"}, "/train: 3 folders of classes instead of 1000; data=folders takes any number"),
        ({"batch_size": 25}, "batch_size=25: choose between 1 and the 24 training images"),
        ({"world": 2}, "batch_size=5: 2 processes cannot share it equally"),
        ({"train_images": 25}, "train_images=25: choose between 1 and the 24"),
        ({"train_images": 4}, "batch_size=5: choose between 1 and the 4"),
        ({"augment": "cutout"}, "augment=cutout: unknown"),
    ):
        with pytest.raises(UsageError, match=message):
            feeds(**changes)
