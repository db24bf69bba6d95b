"""The mix-datasets attack: batches of so many images of one set and so many of another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from calibnorm.errors import UsageError
from calibnorm.lab import data
from calibnorm.lab.data import Feed, ImageSet
from lab.data.batches import epoch, numbered, same, train_feed


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
