"""Folders of pictures through worker processes: the same batches with any number of them, and prompt, named errors."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

import tolerances
from calibnorm.lab import data
from calibnorm.lab.data import Feed, FolderFeeds, folders
from calibnorm.lab.data.pictures import collate
from calibnorm.lab.errors import UsageError

PROMPT_S = 30


@pytest.fixture
def feeds(pictures: Path) -> Iterator[object]:
    """Make feeds that end with the test."""
    made = []

    def make(**changes: object) -> FolderFeeds:
        options = {"root": pictures, "batch_size": 5, "seed": 0, "device": "cpu", "size": 32, "workers": 0, **changes}
        made.append(data.imagenet(options.pop("root"), **options))
        return made[-1]

    yield make
    for both in made:
        both.train.close()
        both.test.close()
    assert not multiprocessing.active_children()


def epoch(feed: Feed, number: int) -> list[tuple[Tensor, Tensor]]:
    feed.set_epoch(number)
    return list(feed)


def same(first: list[tuple[Tensor, Tensor]], second: list[tuple[Tensor, Tensor]]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True)
    )


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
    monkeypatch.setattr(folders.os, "sched_getaffinity", lambda pid: {0, 3, 5})
    monkeypatch.setattr("torch.utils.data.dataloader.DataLoader.check_worker_number_rationality", lambda self: None)
    list(feeds(workers=None).train)
    assert len(multiprocessing.active_children()) == 3


def test_a_part_of_the_pictures(feeds):
    feed = feeds(train_images=9, batch_size=9).train
    first, second = (epoch(feed, number)[0][1] for number in (0, 1))
    assert first.bincount().tolist() == second.bincount().tolist() == [3, 3, 3]


# Errors


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


def test_dead_worker_ends_with_a_named_error_and_without_orphans(feeds):
    feed = feeds(workers=2).train
    batches = iter(feed)
    next(batches)
    victim, other = multiprocessing.active_children()
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        kill_and_go_on(victim.pid, feed)
    feed.close()
    assert time.monotonic() - start < PROMPT_S
    assert not other.is_alive()
    assert not multiprocessing.active_children()
    assert len(list(feed)) == 4  # it starts again


def kill_and_go_on(pid: int, feed: Feed) -> None:
    """Read on until the death is noticed: by the feed, or by torch's signal handler outside it."""
    os.kill(pid, signal.SIGKILL)
    for _ in range(100):
        list(feed)


def test_worker_that_leaves_without_a_word_is_noticed(feeds, monkeypatch):
    """torch's signal handler takes status 0 for a good end."""
    monkeypatch.setattr(folders, "CHECK_S", 0.2)
    monkeypatch.setattr(folders, "collate", lambda pictures: os._exit(0))  # in the workers, which inherit it
    start = time.monotonic()
    with pytest.raises(data.WorkerError, match=r"DataLoader worker .* exited unexpectedly; too little memory"):
        list(feeds(workers=2).train)
    assert time.monotonic() - start < PROMPT_S
    assert not multiprocessing.active_children()


def test_slow_batches_are_waited_for(feeds, monkeypatch):
    whole = epoch(feeds().train, 0)
    monkeypatch.setattr(folders, "CHECK_S", 0.05)
    monkeypatch.setattr(folders, "collate", lambda pictures: time.sleep(0.2) or collate(pictures))
    assert same(epoch(feeds(workers=1).train, 0), whole)


def hanging_picture(feed: Feed, epoch: int, batch: int) -> Path:
    """Put a pipe, which waits for ever for somebody to write, in the place of the batch's first picture."""
    feed._order.epoch = epoch
    _, row = list(feed._order)[batch][0]
    path = feed._loader.dataset._listing.path(row)
    path.rename(path.with_suffix(".kept"))
    os.mkfifo(path)
    return path


@pytest.mark.nightly  # 6 s: the worker is asked first, for five
def test_hanging_disk_is_noticed(feeds, monkeypatch):
    monkeypatch.setattr(folders, "CHECK_S", 0.2)
    monkeypatch.setattr(folders, "TIMEOUT_S", 1)
    feed = feeds(workers=1).train
    hanging_picture(feed, 0, 1)
    batches = iter(feed)
    next(batches)
    (worker,) = multiprocessing.active_children()
    start = time.monotonic()
    with pytest.raises(data.WorkerError, match=r"DataLoader timed out .* a disk that hangs\?"):
        next(batches)
    assert time.monotonic() - start < PROMPT_S
    assert not worker.is_alive()


@pytest.mark.nightly  # 6 s
def test_hanging_worker_is_replaced_at_the_start_of_an_epoch(feeds, monkeypatch):
    whole = epoch(feeds().train, 1)
    monkeypatch.setattr(folders, "CHECK_S", 1)
    feed = feeds(workers=1).train
    path = hanging_picture(feed, 0, 1)
    next(iter(feed))
    (worker,) = multiprocessing.active_children()
    path.with_suffix(".kept").rename(path)
    assert same(epoch(feed, 1), whole)
    assert not worker.is_alive()


def test_signals_to_the_whole_group_are_for_the_main_process(feeds):
    whole = epoch(feeds().train, 1)
    feed = feeds(workers=2).train
    feed.set_epoch(1)
    batches = iter(feed)
    first = [next(batches), next(batches)]  # one of each worker: before its first, it may not yet ignore signals
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGINT)
        os.kill(worker.pid, signal.SIGTERM)
    assert same([*first, *batches], whole)
    assert len(multiprocessing.active_children()) == 2


KILLED = """
import multiprocessing, os, signal, sys
from pathlib import Path
from calibnorm.lab import data
feed = data.imagenet(Path(sys.argv[1]), batch_size=5, seed=0, device="cpu", size=32, workers=2).train
next(iter(feed))
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.nightly  # 10 s: they look after their parent every five
def test_workers_of_a_killed_process_end(pictures):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(pictures)], stdout=subprocess.PIPE, text=True, timeout=2 * PROMPT_S
    )
    assert done.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    end = time.monotonic() + PROMPT_S
    while any(running(pid) for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.1)


def running(pid: int) -> bool:
    try:
        return "(python" in (stat := Path(f"/proc/{pid}/stat").read_text()) and ") Z " not in stat
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("nested", [False, True])
def test_found_in_root_or_below(feeds, pictures, nested):
    assert len(feeds(root=pictures.parent if nested else pictures).train) == 4


def test_missing_set_says_what_goes_where(feeds, tmp_path):
    root = tmp_path / "empty"
    with pytest.raises(UsageError) as error:
        feeds(root=root)
    assert str(error.value) == (
        "data=imagenet is missing: download ILSVRC2012 (its archives img_train, img_val and devkit_t12) and unpack the "
        f"pictures into {root}/imagenet/train/CLASS/ and val/CLASS/"
    )


def test_archives_that_are_not_unpacked(feeds, tmp_path):
    root = tmp_path / "packed"
    root.mkdir()
    (root / "ILSVRC2012_img_train.tar").write_bytes(b"")
    with pytest.raises(
        UsageError, match=r"are not unpacked: run python -c \"from torchvision.datasets import ImageNet"
    ):
        feeds(root=root)


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
        (empty_class, "/train: put the pictures there, one folder a class .*elk"),
        (other_class, r"/train has a class 'cat' that .*/val has not \(2 such classes\); both need the same folders"),
        (flat_validation, "/val: put the pictures there, one folder a class .*Couldn't find any class folder"),
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
    with pytest.raises(UsageError, match=f"data=imagenet: {pictures}/train: Permission denied"):
        feeds()


def test_refused_options(feeds):
    for changes, message in (
        ({"classes": 1000}, "/train: 3 folders of classes instead of 1000"),
        ({"batch_size": 25}, "batch_size=25: choose between 1 and the 24 training images"),
        ({"world": 2}, "batch_size=5: 2 processes cannot share it equally"),
        ({"train_images": 25}, "train_images=25: choose between 1 and the 24"),
        ({"train_images": 4}, "batch_size=5: choose between 1 and the 4"),
        ({"augment": "cutout"}, "augment=cutout: unknown"),
    ):
        with pytest.raises(UsageError, match=message):
            feeds(**changes)
    assert feeds(classes=3).train.classes == 3
