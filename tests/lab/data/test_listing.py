"""What of a folder is a class, a picture, or neither; and in what two sets differ."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torchvision.datasets import ImageFolder

from calibnorm.errors import UsageError
from calibnorm.lab import data
from calibnorm.lab.data import ImageSet, cifar, mnist
from calibnorm.lab.data.contents import Contents, Part, of_images
from calibnorm.lab.data.listing import scan
from lab.data.batches import train_feed


def contents(feeds: Callable[..., data.FolderFeeds]) -> Contents:
    found = feeds().train.contents
    assert found is not None
    return found


def test_order_is_that_of_torchvision(pictures: Path) -> None:
    """So that a run of before, without a note of its data, goes on with the same batches."""
    for name in ("b/c", "b-c", "B", "b"):
        (pictures / "train" / "dog" / name).mkdir(parents=True, exist_ok=True)
        for file in ("z.PNG", "a.jpg", "Z.png"):
            shutil.copy(pictures / "train" / "cat" / "train0.png", pictures / "train" / "dog" / name / file)
    listing, theirs = scan(pictures / "train"), ImageFolder(pictures / "train")
    assert list(listing.classes) == theirs.classes
    ours = [(str(listing.path(index)), int(label)) for index, label in enumerate(listing.labels)]
    assert ours == theirs.samples


def test_what_is_hidden_or_no_picture_is_counted_and_left_out(feeds, pictures: Path) -> None:
    before = contents(feeds)
    cat = pictures / "train" / "cat"
    for folder in (pictures / "train", pictures / "val", cat, pictures / "val" / "cat"):
        shutil.copytree(pictures / "val" / "dog", folder / ".ipynb_checkpoints")
    (cat / "._train0.png").write_bytes(b"of a Mac")
    (cat / "notes.txt").write_text("a note")
    (cat / "moving.gif").write_bytes(b"GIF")
    (pictures / "train" / ".DS_Store").write_bytes(b"")
    (pictures / "train" / "labels.csv").write_text("a,b")
    now = contents(feeds)
    assert now.classes == ("cat", "dog", "fox")
    assert not now.difference(before)
    assert not before.difference(now)
    hidden, beside, other = "hidden", "beside the folders of classes", "without a picture's ending"
    assert now.train.left_out == {
        hidden: (4, ".DS_Store"),
        other: (2, "cat/moving.gif"),
        beside: (1, "labels.csv"),
    }
    assert now.test.left_out == {hidden: (2, ".ipynb_checkpoints")}
    assert now.in_words() == [
        "folders: 3 classes, training images 24 (8 a class), test images 9 (3 a class)",
        "folders: left out of training: 4 hidden (such as .DS_Store), 2 without a picture's ending (such as "
        "cat/moving.gif), 1 beside the folders of classes (such as labels.csv)",
        "folders: left out of test: 2 hidden (such as .ipynb_checkpoints)",
    ]


def only(*classes: str) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        for folder in root.glob("*/*"):
            if folder.name not in classes:
                shutil.rmtree(folder)

    return spoil


def all_hidden(root: Path) -> None:
    for folder in list(root.glob("*/*")):
        folder.rename(folder.with_name(f".{folder.name}"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            only("cat"),
            "/train has one class, 'cat', alone: there is nothing to tell apart; make a folder for each class",
        ),
        (all_hidden, r"/train: put the pictures there, one folder a class \(it holds no folder\)"),
    ],
)
def test_fewer_than_two_classes_are_refused(feeds, pictures: Path, spoil, message: str) -> None:
    spoil(pictures)
    with pytest.raises(UsageError, match=message):
        feeds()


def test_a_folder_in_a_class_that_must_not_be_looked_into(feeds, pictures: Path, monkeypatch) -> None:
    """Its pictures would be missing without a word."""
    (pictures / "train" / "cat" / "more").mkdir()
    scandir = listing_module().os.scandir

    def denied(path: str) -> object:
        if str(path).endswith("more"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(listing_module().os, "scandir", denied)
    with pytest.raises(UsageError, match=r"data=folders: .*/cat/more: Permission denied"):
        feeds()


def listing_module() -> object:
    from calibnorm.lab.data import listing

    return listing


def test_a_link_that_leads_nowhere_is_named_when_it_is_read(feeds, pictures: Path) -> None:
    (pictures / "val" / "cat" / "gone.png").symlink_to(pictures / "nowhere.png")
    with pytest.raises(UsageError, match=r"cat/gone\.png: no picture that can be read \(FileNotFoundError"):
        list(feeds().test)


def rename_class(root: Path) -> None:
    for part in ("train", "val"):
        (root / part / "dog").rename(root / part / "ant")


def add_class(root: Path) -> None:
    for part in ("train", "val"):
        shutil.copytree(root / part / "dog", root / part / "elk")


def rename_file(root: Path) -> None:
    (root / "train" / "dog" / "train0.png").rename(root / "train" / "dog" / "other.png")


def add_files(root: Path) -> None:
    for name in ("cat", "fox"):
        shutil.copy(root / "val" / name / "val0.png", root / "val" / name / "more.png")


def swap_classes(root: Path) -> None:
    (root / "train" / "dog").rename(root / "aside")
    (root / "train" / "cat").rename(root / "train" / "dog")
    (root / "aside").rename(root / "train" / "cat")


def save_anew(root: Path) -> None:
    shutil.copy(root / "train" / "cat" / "train4.png", root / "train" / "dog" / "train0.png")


CHANGES = [
    (rename_class, "class 'dog' is gone, class 'ant' is new"),
    (add_class, "class 'elk' is new"),
    (only("cat", "fox"), "class 'dog' is gone"),
    (rename_file, "class 'dog' has other training images, by name, size or pixels"),
    (add_files, "class 'cat' had 3 test images and has 4, class 'fox' had 3 test images and has 4"),
    (lambda root: (root / "train" / "fox" / "train7.png").unlink(), "class 'fox' had 8 training images and has 7"),
    (swap_classes, "class 'cat' has other training images, by name, size or pixels, class 'dog' has other"),
    (save_anew, "class 'dog' has other training images"),
]


@pytest.mark.parametrize(("change", "difference"), CHANGES)
def test_every_change_of_a_folder_is_named(feeds, pictures: Path, change, difference: str) -> None:
    before = contents(feeds)
    change(pictures)
    assert difference in contents(feeds).difference(before)


def test_a_copy_elsewhere_is_the_same_set(feeds, pictures: Path, tmp_path: Path) -> None:
    before = contents(feeds)
    shutil.copytree(pictures, tmp_path / "disk" / "copy", copy_function=shutil.copyfile)  # times are new
    now = feeds(root=tmp_path / "disk" / "copy").train.contents
    assert now == before
    assert Contents.from_dict(json.loads(json.dumps(now.to_dict()))) == before


def test_many_differences_are_counted() -> None:
    names = tuple(f"class{number}" for number in range(9))
    part = Part(dict.fromkeys(names, 2), dict.fromkeys(names, "a"))
    before = Contents("folders", names, part, part)
    now = replace(before, train=Part(dict.fromkeys(names, 3), part.digests))
    assert now.difference(before).endswith("class 'class2' had 2 training images and has 3, and 6 more such")
    assert replace(before, classes=names[::-1]).difference(before) == "the classes have another order"


@pytest.mark.parametrize("content", [[], {}, {"data": "x", "classes": ["a"], "train": {"images": {}}}, {"train": 3}])
def test_something_else_is_no_contents(content: object) -> None:
    with pytest.raises(ValueError, match="no contents of a set"):
        Contents.from_dict(content)


def test_what_a_set_in_memory_holds(gray: ImageSet, color: ImageSet) -> None:
    found = train_feed(gray).contents
    assert found == of_images(gray)
    assert found.classes == ("0", "1", "2", "3")
    assert sum(found.train.images.values()) == 64
    pixels = gray.train.images.clone()
    pixels[5] += 1
    other = replace(gray, train=replace(gray.train, images=pixels))
    label = int(gray.train.labels[5])
    assert of_images(other).difference(found) == f"class '{label}' has other training images, by name, size or pixels"
    mixed = of_images(color, gray)
    assert mixed.classes == (*map(str, range(10)), *(f"gray {number}" for number in range(4)))
    assert list(mixed.train.images.values()) == [10] * 10 + [16] * 4
    assert sum(mixed.test.images.values()) == 37


def test_class_names_of_the_known_sets() -> None:
    from torchvision.datasets import FashionMNIST

    assert list(mnist.FASHION) == FashionMNIST.classes
    assert len(set(cifar.CIFAR100)) == 100
    assert list(cifar.CIFAR100) == sorted(cifar.CIFAR100)
    assert (cifar.CIFAR10[3], cifar.CIFAR10[9], cifar.CIFAR100[30]) == ("cat", "truck", "dolphin")
    for name in data.names():
        info = data.info(name)
        assert len(info.class_names) in (0, info.classes)
    digits = data.load("digits", Path())
    assert of_images(digits).classes == tuple(map(str, range(10)))
    assert torch.tensor(list(of_images(digits).train.images.values())).sum() == len(digits.train)
