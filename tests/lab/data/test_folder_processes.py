"""Worker processes that die, hang, are slow or get signals: the same batches, or prompt, named errors."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from calibnorm.lab import data
from calibnorm.lab.data import Feed, folders
from calibnorm.lab.data.pictures import collate
from lab.data.batches import epoch, same

PROMPT_S = 30


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
feed = data.folder_feeds("folders", Path(sys.argv[1]), batch_size=5, seed=0, device="cpu", size=32, workers=2).train
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
        return "(python" in (stat := Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")) and ") Z " not in stat
    except FileNotFoundError:
        return False
