"""Batches of sets in memory: orders, resumption, parts of processes."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from calibnorm.errors import UsageError
from calibnorm.lab import data
from calibnorm.lab.data.augment import Shifts
from calibnorm.lab.data.seeding import generator
from lab.data.batches import epoch, numbered, order, same, train_feed


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
