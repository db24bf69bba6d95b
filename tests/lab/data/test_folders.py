"""Folders of pictures through worker processes: the same batches with any number of them."""

from __future__ import annotations

import multiprocessing

import numpy as np
import pytest
import torch
from PIL import Image

import tolerances
from calibnorm.lab.data import folders
from lab.data.batches import epoch, same


def test_workers_change_nothing(feeds):
    alone, crowd = feeds(), feeds(workers=2)
    assert alone.class_names == ("cat", "dog", "fox")
    assert len(alone.train) == 24 // 5
    for number in (0, 1):
        assert same(epoch(alone.train, number), epoch(crowd.train, number))
    assert same(list(alone.test), list(crowd.test))
    workers = multiprocessing.active_children()
    assert len(workers) == 4
    assert same(epoch(alone.train, 2), epoch(crowd.train, 2))
    assert set(workers) == set(multiprocessing.active_children())  # they stay for the next epoch


def test_seed_and_epoch_determine_an_epoch(feeds):
    first = epoch(feeds().train, 1)
    assert [images.shape for images, _ in first] == [(5, 3, 32, 32)] * 4
    torch.rand(3)
    assert same(first, epoch(feeds().train, 1))
    assert not same(first, epoch(feeds().train, 2))
    assert not same(first, epoch(feeds(seed=1).train, 1))


@pytest.mark.parametrize("workers", [0, 2])
def test_goes_on_in_the_middle_of_an_epoch(feeds, workers):
    whole = epoch(feeds().train, 3)
    feed = feeds(workers=workers).train
    feed.set_epoch(3)
    batches = iter(feed)
    assert same([next(batches), next(batches)], whole[:2])
    state = feed.state_dict()
    assert state == {"epoch": 3, "next_batch": 2}
    assert same(list(feed), whole)  # what the workers had fetched ahead is thrown away
    resumed = feeds(workers=workers).train
    resumed.load_state_dict(state)
    assert same(list(resumed), whole[2:])


@pytest.mark.parametrize("workers", [0, 1])
def test_global_random_numbers_are_left_alone(feeds, workers):
    before = torch.get_rng_state()
    for feed in feeds(workers=workers)[:2]:
        list(feed)
    assert torch.equal(torch.get_rng_state(), before)


def test_processes_share_batches_and_test_each_picture_once(feeds):
    whole = epoch(feeds(batch_size=6).train, 1)
    both = [feeds(batch_size=6, rank=rank, world=2) for rank in range(2)]
    parts = [epoch(feed.train, 1) for feed in both]
    together = [tuple(torch.cat(part) for part in zip(*batch, strict=True)) for batch in zip(*parts, strict=True)]
    assert same(together, whole)
    labels = torch.cat([labels for feed in both for _, labels in feed.test])
    assert sorted(labels.tolist()) == [0] * 3 + [1] * 3 + [2] * 3


def test_test_pictures_are_resized_and_cut_from_the_centre(feeds, pictures):
    with Image.open(pictures / "val" / "dog" / "val1.png") as image:  # 55 x 40: the short side becomes 37
        resized = image.convert("RGB").resize((int(37 * 55 / 40), 37), Image.Resampling.BILINEAR)
    left, top = round((resized.width - 32) / 2), round((37 - 32) / 2)
    crop = torch.frombuffer(bytearray(resized.crop((left, top, left + 32, top + 32)).tobytes()), dtype=torch.uint8)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (folders.MEAN, folders.STD))
    expected = (crop.view(32, 32, 3).permute(2, 0, 1).double() / 255 - mean) / std
    batches = list(feeds(batch_size=9).test)
    assert batches[0][1].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert tolerances.error(batches[0][0][4], expected) < tolerances.rounding(torch.float32)


@pytest.mark.parametrize("augment", ["crop_flip", "crop", "none"])
def test_training_pictures_are_cut_and_flipped(feeds, pictures, augment):
    """Each picture becomes a ramp from black on the left to white on the right: what is left of it shows the cut."""
    ramp = torch.arange(0, 256, dtype=torch.uint8).expand(64, 256).contiguous()
    for path in (pictures / "train").rglob("*.*"):
        Image.fromarray(ramp.numpy()).save(path.with_suffix(".png"))
        if path.suffix != ".png":
            path.unlink()
    feed = feeds(batch_size=24, augment=augment).train
    rows = torch.cat([epoch(feed, number)[0][0] for number in range(4)])[:, 0, 16]
    rising, falling = rows[:, -1] > rows[:, 0], rows[:, -1] < rows[:, 0]
    assert (rising | falling).all()
    widths = (rows[:, -1] - rows[:, 0]).abs()
    if augment == "none":
        assert rising.all()
        assert len(widths.unique()) == 1
    else:
        # 8 to 100 % of the area and 3:4 to 4:3 in shape: 31 to 85 of the 256 columns.
        assert len(widths.unique()) > 20
        pixels = widths * folders.STD[0] * 255
        assert 25 < pixels.min() < 45
        assert 60 < pixels.max() < 90
        assert falling.any() == (augment == "crop_flip")
        assert falling.sum() < 70  # of 96


def test_workers_as_many_as_cores(feeds, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 3, 5})
    monkeypatch.setattr("torch.utils.data.dataloader.DataLoader.check_worker_number_rationality", lambda self: None)
    list(feeds(workers=None).train)
    assert len(multiprocessing.active_children()) == 3


def test_a_part_of_the_pictures(feeds):
    feed = feeds(train_images=9, batch_size=9).train
    first, second = (epoch(feed, number)[0][1] for number in (0, 1))
    assert first.bincount().tolist() == second.bincount().tolist() == [3, 3, 3]


def test_gray_pictures_of_sixteen_bits_are_those_of_eight(feeds, pictures, tmp_path):
    """They had become white, and a network that reads them guessed."""
    deep = tmp_path / "deep"
    for path in pictures.glob("*/*/*"):
        place = deep / path.relative_to(pictures).with_suffix(".png")
        place.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            gray = image.convert("L")
        path.unlink()
        gray.save(path.with_suffix(".png"))
        Image.fromarray(np.asarray(gray).astype(np.uint16) * 257).save(place)
    assert same(epoch(feeds().train, 1), epoch(feeds(root=deep).train, 1))
    assert same(list(feeds().test), list(feeds(root=deep).test))
