"""The tasks made of real pictures: what is in them, that they are always the same, that their parts share nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from calibnorm.lab import data
from calibnorm.lab.data import Split, composed, digits, mnist
from calibnorm.lab.data.photographs import NAMES, photograph
from calibnorm.lab.data.seeding import generator

SETS = {
    "fashion_colours": composed.read_fashion_colours,
    "patches": composed.read_patches,
    "pasted_digits": composed.read_pasted_digits,
}


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty pictures a part; and items of FashionMNIST's form where Debian's package may not be."""
    monkeypatch.setattr(composed, "COUNTS", {"train": 30, "test": 30})

    def items(seed: int) -> Split:
        drawn = torch.randint(0, 256, (50, 1, 28, 28), generator=generator("items", seed), dtype=torch.uint8)
        return Split(drawn, torch.arange(50) % 10)

    monkeypatch.setattr(mnist, "read_fashion_mnist", lambda root: (items(0), items(1)))
    read = digits.read
    monkeypatch.setattr(
        digits, "read", lambda root: tuple(Split(part.images[:30], part.labels[:30]) for part in read(root))
    )


@pytest.mark.parametrize("name", SETS)
def test_a_set_is_always_the_same(name: str) -> None:
    first, again = SETS[name](Path()), SETS[name](Path())
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert one.images.shape == (30, 3, composed.SIZE, composed.SIZE)
        assert len(one.images.flatten(1).unique(dim=0)) == 30  # no picture twice
    assert len(torch.cat([first[0].images, first[1].images]).flatten(1).unique(dim=0)) == 60


@pytest.mark.parametrize("name", SETS)
def test_a_set_loads_by_name_with_its_classes(name: str) -> None:
    images = data.load(name, Path(), train_images=20)
    assert (images.channels, images.size, len(images.train)) == (3, composed.SIZE, 20)
    assert images.classes == data.info(name).classes == (len(NAMES) if name == "patches" else 10)


def test_test_patches_are_of_the_other_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a picture with a black left and a white right half, training sees black alone and the test white alone."""
    halves = torch.cat([torch.zeros(3, 200, 200), torch.full((3, 200, 200), 255.0)], 2).to(torch.uint8)
    monkeypatch.setattr(composed, "photograph", lambda name: halves)
    train, test = composed.read_patches(Path())
    assert (int(train.images.max()), int(test.images.min())) == (0, 255)


def test_a_digit_is_drawn_in_one_colour_and_its_ground_stays() -> None:
    random = generator("patch", 0)
    ground = composed.patch(photograph("brick"), random)
    assert ground.shape == (3, composed.SIZE, composed.SIZE)
    train, _ = composed.read_pasted_digits(Path())
    assert 20 < float(train.images.float().mean()) < 235


def test_items_have_colours() -> None:
    train, _ = composed.read_fashion_colours(Path())
    assert bool((train.images.float().mean((2, 3)).std(1) > 1).any())


@pytest.mark.parametrize("name", NAMES)
def test_every_photograph_is_there(name: str) -> None:
    picture = photograph(name)
    assert (picture.shape[0], picture.dtype) == (3, torch.uint8)
    assert min(picture.shape[1:]) >= 200
    assert float(picture.float().std()) > 10
