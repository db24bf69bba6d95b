"""Batches of sets in memory: orders, crops and flips, resumption, parts of processes, the mix-datasets attack."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tolerances
from calibnorm.lab import data
from calibnorm.lab.data import Feed, ImageSet
from calibnorm.lab.data.augment import PADDING, Shifts, crop_flip
from calibnorm.lab.data.seeding import generator
from calibnorm.lab.errors import UsageError

Batch = tuple[Tensor, Tensor]


def train_feed(images: ImageSet, **changes: object) -> Feed:
    return data.train_feed(images, **{"batch_size": 12, "seed": 0, "device": "cpu", **changes})


def epoch(feed: Feed, number: int) -> list[Batch]:
    feed.set_epoch(number)
    return list(feed)


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True)
    )


def order(batches: list[Batch]) -> Tensor:
    return torch.cat([labels for _, labels in batches])


def numbered(images: ImageSet) -> ImageSet:
    """Return the set with each training image's number as its label."""
    count = len(images.train)
    return data.image_set.make("numbered", data.Split(images.train.images, torch.arange(count)), images.test, count)


# Orders


def test_seed_and_epoch_determine_an_epoch(color):
    first = epoch(train_feed(color), 3)
    assert same(first, epoch(train_feed(color), 3))
    feed = train_feed(color)
    list(feed)  # what ran before changes nothing
    torch.rand(5)
    assert same(first, epoch(feed, 3))
    assert same(first, list(feed))  # nor does iterating again
    for other in (epoch(train_feed(color), 4), epoch(train_feed(color, seed=1), 3)):
        assert not same(first, other)


def test_an_epoch_is_whole_batches_of_different_images(color):
    feed = train_feed(numbered(color))
    assert len(feed) == 100 // 12
    first, second = (order(epoch(feed, number)) for number in (0, 1))
    assert len(first) == len(first.unique()) == 96
    assert not torch.equal(first, second)
    assert set(first.tolist()) != set(second.tolist())  # others are left over
    assert all(images.shape == (12, 3, 32, 32) for images, _ in feed)


def test_labels_stay_with_their_images(color):
    feed = train_feed(numbered(color), augment="none")
    mean, std = (255 * torch.tensor(values).view(3, 1, 1) for values in (color.mean, color.std))
    for images, labels in feed:
        assert torch.equal((images * std + mean).round().to(torch.uint8), color.train.images[labels])


def test_global_random_numbers_are_left_alone(color):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(train_feed(color))
    list(data.test_feed(color, batch_size=8, device="cpu"))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_numbers_of_a_seed_stay_what_they_are(color):
    """A committed study stands on them: a change here is a change of every published figure."""
    assert order(list(train_feed(numbered(color))))[:6].tolist() == [79, 77, 75, 60, 32, 13]
    shifts = Shifts.draw(4, generator("main crops", 0, 0), flip=True)
    assert [t.tolist() for t in (shifts.top, shifts.left, shifts.mirrored)] == [
        [7, 1, 5, 8],
        [8, 5, 7, 1],
        [True, False, True, False],
    ]
    assert data.image_set.balanced(torch.arange(40) % 2, 2, 6, 0).tolist() == [2, 3, 9, 20, 21, 34]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_gets_the_same_batches(color, gray):
    for changes in ({}, {"mix": gray, "mix_main": 4, "mix_others": 12, "batch_size": 16}):
        there = epoch(train_feed(color, device="cuda", **changes), 1)
        assert all(part.is_cuda for batch in there for part in batch)
        assert same([(images.cpu(), labels.cpu()) for images, labels in there], epoch(train_feed(color, **changes), 1))


# Resumption


@pytest.mark.parametrize("done", [0, 1, 5, 8])
def test_goes_on_in_the_middle_of_an_epoch(color, done):
    whole = epoch(train_feed(color), 7)
    feed = train_feed(color)
    feed.set_epoch(7)
    assert same(list(islice(feed, done)), whole[:done])
    state = feed.state_dict()
    assert state == {"epoch": 7, "next_batch": done}
    resumed = train_feed(color)
    resumed.load_state_dict(state)
    resumed.set_epoch(7)  # as a loop over epochs does; it keeps the place
    assert same(list(resumed), whole[done:])
    assert resumed.state_dict() == {"epoch": 7, "next_batch": 8}
    assert same(list(resumed), whole)  # the next iteration is whole again
    assert same(epoch(resumed, 8), epoch(train_feed(color), 8))


def test_another_epoch_forgets_the_place(color):
    feed = train_feed(color)
    feed.load_state_dict({"epoch": 7, "next_batch": 5})
    assert same(epoch(feed, 8), epoch(train_feed(color), 8))


def test_a_place_that_does_not_exist(color):
    with pytest.raises(ValueError, match="next_batch=9: an epoch of this feed has 8 batches"):
        train_feed(color).load_state_dict({"epoch": 0, "next_batch": 9})


def test_test_feed_goes_on_too(color):
    whole = list(data.test_feed(color, batch_size=8, device="cpu"))
    feed = data.test_feed(color, batch_size=8, device="cpu")
    feed.load_state_dict({"epoch": 0, "next_batch": 3})
    assert same(list(feed), whole[3:])


# Augmentation


def reference(image_CHW: Tensor, top: int, left: int, mirrored: bool) -> Tensor:
    """One image and one pixel at a time."""
    channels, height, width = image_CHW.shape
    result = torch.zeros_like(image_CHW)
    for channel in range(channels):
        for row in range(height):
            for column in range(width):
                source_row = row + top - PADDING
                source_column = (width - 1 - column if mirrored else column) + left - PADDING
                if 0 <= source_row < height and 0 <= source_column < width:
                    result[channel, row, column] = image_CHW[channel, source_row, source_column]
    return result


@pytest.mark.parametrize("shape", [(30, 1, 8, 8), (30, 3, 6, 7)])
def test_crop_and_flip_against_one_image_at_a_time(shape):
    images = torch.randint(1, 256, shape, dtype=torch.uint8, generator=generator("test"))
    shifts = Shifts.draw(len(images), generator("test shifts"), flip=True)
    expected = [
        reference(image, int(shifts.top[i]), int(shifts.left[i]), bool(shifts.mirrored[i]))
        for i, image in enumerate(images)
    ]
    assert torch.equal(crop_flip(images, shifts), torch.stack(expected))


def test_all_crops_and_flips_are_drawn_alike():
    shifts = Shifts.draw(81_000, generator("test"), flip=True)
    places = (9 * shifts.top + shifts.left + 81 * shifts.mirrored).bincount(minlength=162)
    assert len(places) == 162
    # 500 of each expected; six standard deviations of a count are 134.
    assert (places - 500).abs().max() < 134
    chi_square = ((places - 500) ** 2 / 500).sum().item()
    assert abs(chi_square - 161) < 6 * (2 * 161) ** 0.5
    unflipped = Shifts.draw(81_000, generator("test"), flip=False)
    assert not unflipped.mirrored.any()
    assert torch.equal(unflipped.top, shifts.top)


@pytest.mark.parametrize("augment", ["crop_flip", "crop", "none"])
def test_batches_are_augmented_and_standardized(color, augment):
    images = numbered(color)
    shifts = Shifts.draw(96, generator("main crops", 0, 0), flip=augment == "crop_flip")
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (images.mean, images.std))
    batch, labels = next(iter(train_feed(images, augment=augment)))
    for i in range(3):
        image = images.train.images[labels[i]]
        if augment != "none":
            image = reference(image, int(shifts.top[i]), int(shifts.left[i]), bool(shifts.mirrored[i]))
        expected = (image.double() / 255 - mean) / std
        assert tolerances.error(batch[i], expected) < tolerances.rounding(torch.float32)
    assert batch.dtype == torch.float32
    assert labels.dtype == torch.int64


def test_training_images_are_standardized_exactly(color):
    every = torch.cat([images for images, _ in train_feed(color, batch_size=100, augment="none")]).double()
    assert every.mean((0, 2, 3)).abs().max() < 1e-6
    assert (every.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-6


def test_test_images_come_in_order_without_augmentation(color):
    batches = list(data.test_feed(color, batch_size=8, device="cpu"))
    assert [len(labels) for _, labels in batches] == [8, 8, 8, 8, 5]
    assert torch.equal(order(batches), color.test.labels)
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (color.mean, color.std))
    expected = (color.test.images.double() / 255 - mean) / std
    error = tolerances.error(torch.cat([images for images, _ in batches]), expected)
    assert error < tolerances.rounding(torch.float32)


def test_refused_options(color):
    for changes, message in (
        ({"batch_size": 0}, "batch_size=0: choose between 1 and the 100 training images"),
        ({"batch_size": 101}, "batch_size=101: choose between 1 and the 100 training images"),
        ({"world": 5}, "batch_size=12: 5 processes cannot share it equally; choose a multiple"),
        ({"augment": "cutout"}, "augment=cutout: unknown; choose one of crop_flip, crop, none"),
    ):
        with pytest.raises(UsageError, match=message):
            train_feed(color, **changes)
    with pytest.raises(UsageError, match="batch_size=0: must be at least 1"):
        data.test_feed(color, batch_size=0, device="cpu")


# Processes


@pytest.mark.parametrize("world", [2, 3, 4])
def test_processes_share_each_batch(color, world):
    whole = epoch(train_feed(color), 2)
    parts = [epoch(train_feed(color, rank=rank, world=world), 2) for rank in range(world)]
    together = [tuple(torch.cat(part) for part in zip(*batch, strict=True)) for batch in zip(*parts, strict=True)]
    assert same(together, whole)
    assert all(len(labels) == 12 // world for part in parts for _, labels in part)


@pytest.mark.parametrize(("world", "batch_size"), [(2, 8), (3, 8), (5, 2)])
def test_processes_test_each_image_once(color, world, batch_size):
    numbers = data.Split(color.test.images, torch.arange(37))
    images = data.image_set.make("numbered", color.train, numbers, 37)
    feeds = [data.test_feed(images, batch_size=batch_size, device="cpu", rank=r, world=world) for r in range(world)]
    seen = torch.cat([order(list(feed)) for feed in feeds])
    assert sorted(seen.tolist()) == list(range(37))
    assert all(len(feed) == len(list(feed)) for feed in feeds)


# The mix-datasets attack


def mixed(color: ImageSet, gray: ImageSet, **changes: object) -> Feed:
    options = {"batch_size": 16, "mix": gray, "mix_main": 4, "mix_others": 12, **changes}
    return train_feed(color, **options)


def test_mixed_batches_hold_so_many_of_each(color, gray):
    feed = mixed(color, gray)
    assert feed.classes == 14
    assert feed.channels == 3
    assert len(feed) == 25
    for images, labels in feed:
        assert images.shape == (16, 3, 32, 32)
        assert (labels[:4] < 10).all()
        assert ((labels[4:] >= 10) & (labels[4:] < 14)).all()
        assert all(torch.equal(images[4:, 0], images[4:, channel]) for channel in (1, 2))


def test_an_epoch_is_one_pass_over_the_main_set(color, gray):
    batches = list(mixed(numbered(color), numbered(gray)))
    main = torch.cat([labels[:4] for _, labels in batches])
    others = torch.cat([labels[4:] for _, labels in batches]) - 100
    assert sorted(main.tolist()) == list(range(100))
    # 300 of the other set's 64: four whole passes, each in its own order, and a part of a fifth.
    passes = others.split(64)
    assert [sorted(p.tolist()) for p in passes[:4]] == [list(range(64))] * 4
    assert not torch.equal(passes[0], passes[1])
    assert others.bincount(minlength=64).tolist().count(5) == 300 - 4 * 64


def test_both_sets_are_shuffled_independently(color, gray):
    """The main set's part is what it is without the other one."""
    alone = epoch(train_feed(color, batch_size=4), 1)
    beside = [(images[:4], labels[:4]) for images, labels in epoch(mixed(color, gray), 1)]
    assert same(alone, beside)


def test_each_set_is_standardized_by_its_own_statistics(color, gray):
    batches = list(mixed(color, gray, mix_main=100, mix_others=64, batch_size=164, augment="none"))
    others = batches[0][0][100:].double()
    assert others.mean().abs() < 1e-6
    assert abs(others.std(correction=0) - 1) < 1e-6


def test_mixed_batches_resume_and_are_shared(color, gray):
    whole = epoch(mixed(color, gray), 2)
    feed = mixed(color, gray)
    feed.load_state_dict({"epoch": 2, "next_batch": 20})
    assert same(list(feed), whole[20:])
    halves = [epoch(mixed(color, gray, rank=rank, world=2), 2) for rank in range(2)]
    for (_, labels), (_, left), (_, right) in zip(whole, *halves, strict=True):
        assert torch.equal(labels, torch.cat([left[:2], right[:2], left[2:], right[2:]]))


def test_refused_mixtures(color, gray):
    for changes, message in (
        ({"batch_size": 128}, "batch_size=128: mixed batches of 4 and 12 images need their sum"),
        ({"mix_main": 101}, "mix_main=101: choose between 1 and the 100"),
        ({"mix_others": 65}, "mix_others=65: choose between 1 and the 64"),
        ({"world": 3}, "mix_main=4: 3 processes cannot share it equally"),
    ):
        with pytest.raises(UsageError, match=message):
            mixed(color, gray, **changes)
    with pytest.raises(UsageError, match="color: its images of 3 x 16 x 16 do not fit into 1 x 28 x 28"):
        mixed(gray, color)


def test_the_papers_numbers_on_real_digits():
    """100 of one set and 240 of another a batch, here of digits twice."""
    digits = data.load("digits", Path("unused"))
    feed = train_feed(digits, mix=digits, batch_size=340, mix_main=100, mix_others=240)
    assert [len(labels) for _, labels in feed] == [340] * 11
    assert feed.classes == 20
