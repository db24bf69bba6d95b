"""Sets by name, checks before training, parts of sets, smaller and colored images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn.functional import avg_pool2d

from calibnorm.errors import UsageError
from calibnorm.lab import data
from calibnorm.lab.data import Split
from calibnorm.lab.data.image_set import balanced, fit, make


def test_names_and_what_is_known_of_them():
    composed = ("fashion_colours", "patches", "pasted_digits")
    assert data.names() == (
        *("digits", "mnist", "fashion_mnist", "cifar10", "cifar100"),
        *composed,
        *("imagenet", "folders"),
    )
    assert replace(data.info("cifar100"), class_names=()) == data.Info(100, 3, 32)
    assert data.info("imagenet").folder


def test_unknown_set():
    for call in (lambda: data.info("cifar"), lambda: data.load("cifar", Path())):
        with pytest.raises(UsageError, match=r"data=cifar: unknown; choose one of digits, mnist, .* imagenet"):
            call()


def test_a_folder_set_is_not_loaded():
    with pytest.raises(UsageError, match=r"data=imagenet: .* calibnorm.lab.data.folder_feeds reads them"):
        data.load("imagenet", Path())


def test_a_folder_that_must_not_be_looked_into(monkeypatch):
    def denied(root: Path) -> tuple[Split, Split]:
        raise PermissionError(13, "Permission denied", str(root / "FashionMNIST"))

    monkeypatch.setitem(data.sets._SETS, "fashion_mnist", (data.info("fashion_mnist"), denied))
    with pytest.raises(UsageError, match="FashionMNIST: Permission denied"):
        data.load("fashion_mnist", Path("x"))


def test_another_size_than_the_sets(monkeypatch, color):
    monkeypatch.setitem(data.sets._SETS, "mnist", (data.info("mnist"), lambda root: (color.train, color.test)))
    with pytest.raises(UsageError, match="data=mnist: images of 3 x 32 x 32 instead of 1 x 28 x 28"):
        data.load("mnist", Path())


def test_digits_are_split_once_and_standardized_by_the_training_images():
    """Against scikit-learn's images, from 0 to 16, split and standardized here."""
    images = data.load("digits", Path("unused"))
    bunch = load_digits()
    train, test, train_labels, _ = train_test_split(
        bunch.images, bunch.target, test_size=1 / 3, stratify=bunch.target, random_state=0
    )
    assert len(train) + len(test) == 1797
    assert torch.equal(images.train.labels, torch.as_tensor(train_labels))
    ours = torch.cat([batch for batch, _ in data.test_feed(images, batch_size=128, device="cpu")])
    theirs = torch.as_tensor((test - train.mean()) / train.std(), dtype=torch.float32).unsqueeze(1)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert ours.mean().abs() > 1e-4  # its own mean was not taken away
    of_test, of_train = images.test.labels.bincount(minlength=10), images.train.labels.bincount(minlength=10)
    assert (of_test - of_train / 2).abs().max() <= 1  # stratified: a third of each digit


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (Split(torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)), "must be .* in torch.uint8"),
        (Split(torch.zeros(4, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)), r"must be \(N, C, H, H\)"),
        (Split(torch.zeros(4, 1, 8, 9, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)), r"\(4, 1, 8, 9\)"),
        (Split(torch.zeros(4, 2, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)), "2 channels"),
        (Split(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(5, dtype=torch.int64)), r"labels \(5,\)"),
        (Split(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4)), "in torch.float32"),
        (Split(torch.zeros(0, 1, 8, 8, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64)), "are none"),
        (
            Split(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 10])),
            "from 0 to 10; 10 classes are 0 to 9",
        ),
        (Split(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([-1, 3])), "from -1 to 3"),
        (Split(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1])), "one value in all training images"),
        (
            Split(torch.zeros(2, 1, 9, 9, dtype=torch.uint8), torch.tensor([0, 1])),
            r"\(1, 9, 9\) for training and \(1, 8, 8",
        ),
    ],
)
def test_what_training_would_trip_over(monkeypatch, train, message):
    test = Split(torch.ones(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]))
    monkeypatch.setitem(data.sets._SETS, "digits", (data.info("digits"), lambda root: (train, test)))
    with pytest.raises(UsageError, match=message) as error:
        data.load("digits", Path())
    assert str(error.value).startswith("data=digits: ")
    assert "\n" not in str(error.value)


def test_subset_is_balanced_and_nested():
    labels = torch.arange(1000) % 10
    small, large = balanced(labels, 10, 205, 3), balanced(labels, 10, 500, 3)
    assert labels[small].bincount().tolist() == [21] * 5 + [20] * 5
    assert labels[large].bincount().tolist() == [50] * 10
    assert set(small.tolist()) < set(large.tolist())
    assert torch.equal(small, small.sort().values)
    assert len(small.unique()) == 205
    assert torch.equal(small, balanced(labels, 10, 205, 3))
    assert not torch.equal(small, balanced(labels, 10, 205, 4))


def test_subset_takes_what_there_is_of_rare_classes():
    labels = torch.tensor([0] * 3 + [1] * 100 + [2] * 50)
    assert labels[balanced(labels, 3, 90, 0)].bincount().tolist() == [3, 44, 43]
    assert labels[balanced(labels, 3, 153, 0)].bincount().tolist() == [3, 100, 50]
    assert labels[balanced(labels, 4, 1, 0)].bincount().tolist() == [1]


@pytest.mark.parametrize("count", [0, -5, 1199])
def test_subset_of_nothing_or_of_more_than_there_is(count):
    with pytest.raises(UsageError, match=f"train_images={count}: choose between 1 and the 1198 training images"):
        data.load("digits", Path(), train_images=count)


def test_statistics_are_those_of_the_chosen_images():
    part = data.load("digits", Path(), train_images=100, subset_seed=1)
    assert part.mean == pytest.approx((part.train.images.double().mean().item() / 255,), rel=1e-12)
    assert part.mean != data.load("digits", Path()).mean


def test_shrink_averages_squares(gray):
    small = data.shrink(gray, 14)
    mean = avg_pool2d(gray.train.images.double(), 2)
    assert (small.train.images - mean).abs().max() <= 0.5
    assert (small.channels, small.size, small.classes) == (1, 14, 4)
    assert torch.equal(small.train.labels, gray.train.labels)
    assert small.std[0] < gray.std[0]
    assert data.shrink(gray, 28) is gray


@pytest.mark.parametrize("size", [0, 10, 56])
def test_shrink_to_what_does_not_divide(gray, size):
    with pytest.raises(
        UsageError, match=f"image_size={size}: gray has 28 pixels a side; choose one of 1, 2, 4, 7, 14, 28"
    ):
        data.shrink(gray, size)


def test_fit_frames_in_black_and_repeats_gray(gray):
    fitted = fit(gray, 3, 32)
    assert fitted.train.images.shape == (64, 3, 32, 32)
    inner = fitted.train.images[:, :, 2:30, 2:30]
    assert all(torch.equal(inner[:, c], gray.train.images[:, 0]) for c in range(3))
    assert fitted.train.images.sum() == 3 * gray.train.images.sum()
    assert len(set(fitted.mean)) == 1
    assert fitted.mean[0] == pytest.approx(gray.mean[0] * 28**2 / 32**2)
    assert fit(gray, 1, 31).train.images.shape == (64, 1, 31, 31)


def test_fit_shrinks_what_is_larger_by_whole_squares(gray, color):
    fitted, seven = fit(gray, 1, 8), data.shrink(gray, 7)
    assert fitted.train.images.shape == (64, 1, 8, 8)
    assert torch.equal(fitted.train.images[..., :7, :7], seven.train.images)
    assert not fitted.train.images[..., 7, :].any()
    assert not fitted.train.images[..., 7].any()
    assert fit(color, 3, 31).train.images.shape[1:] == (3, 31, 31)


def test_fit_of_color_into_gray(color):
    with pytest.raises(UsageError, match="color: its images of 3 x 32 x 32 do not fit into 1 x 32 x 32"):
        fit(color, 1, 32)


def test_made_sets_say_what_they_are(color):
    again = make("color", color.train, color.test, 10)
    assert (again.name, again.classes, again.channels, again.size) == ("color", 10, 3, 32)
