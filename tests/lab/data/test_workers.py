"""Workers that read pictures and signals: from a worker's first instant on, they are for the main process."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from calibnorm.lab import data
from calibnorm.lab.data import workers

PATIENCE_S = 60


@pytest.fixture
def feed(pictures):
    made = data.folder_feeds("folders", pictures, batch_size=5, seed=0, device="cpu", size=32, workers=2).train
    yield made
    made.close()
    assert not multiprocessing.active_children()


def at_birth(monkeypatch, what):
    """Call a function in each new process before anything else, with torch's loop of a worker still to come."""
    born = BaseProcess._bootstrap

    def bootstrap(self, *arguments, **options):
        what()
        return born(self, *arguments, **options)

    monkeypatch.setattr(BaseProcess, "_bootstrap", bootstrap)


def to_myself():
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)


def test_signals_at_a_workers_birth_do_not_end_it(feed, monkeypatch):
    at_birth(monkeypatch, to_myself)
    assert len(list(feed)) == 4
    first = multiprocessing.active_children()
    assert len(first) == 2
    assert len(list(feed)) == 4
    assert multiprocessing.active_children() == first


def test_signals_before_a_worker_can_choose_handlers_do_not_end_it(feed, monkeypatch):
    """After torch has set its own, which end it at SIGTERM, and before it calls the lab."""
    from torch.utils.data._utils import signal_handling

    handle = signal_handling._set_worker_signal_handlers
    monkeypatch.setattr(signal_handling, "_set_worker_signal_handlers", lambda: handle() or to_myself())
    assert len(list(feed)) == 4


def test_a_signal_waits_for_the_start_of_the_workers_and_ends_them(feed, monkeypatch):
    """The main process is told to end while it starts them: they are known by then."""
    main, first = os.getpid(), multiprocessing.get_context("fork").Lock()
    # Once: another Ctrl-C, when the main process ends the workers, would break that off.
    at_birth(monkeypatch, lambda: os.kill(main, signal.SIGINT) if first.acquire(block=False) else None)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(feed)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not multiprocessing.active_children()
    monkeypatch.undo()
    assert len(list(feed)) == 4
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


def test_a_signal_that_another_thread_takes_waits_too():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    now, done = threading.Event(), []

    def take():
        now.wait()
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    def start():
        with workers.held_back():
            now.set()
            other.join()
            done.append("all of it")

    other = threading.Thread(target=take)  # from before the block: it inherits no signals that are held back
    other.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            start()
    finally:
        signal.signal(signal.SIGINT, before)
    assert done == ["all of it"]


@pytest.mark.filterwarnings("ignore:Exception ignored in.*_MultiProcessingDataLoaderIter.__del__")  # torch's own
def test_a_start_that_fails_half_way_leaves_no_worker(feed, monkeypatch):
    start = BaseProcess.start

    def second_fails(self):
        if multiprocessing.active_children():
            raise OSError(12, "Cannot allocate memory")
        start(self)

    monkeypatch.setattr(BaseProcess, "start", second_fails)
    with pytest.raises(data.WorkerError, match="Cannot allocate memory"):
        list(feed)
    gc.collect()  # what is left of torch's iterator complains when it goes
    assert not multiprocessing.active_children()


HANGING = """
import multiprocessing, os, signal, sys, time
from pathlib import Path
from calibnorm.lab import data
from calibnorm.lab.data import folders, workers

def hang(pictures):
    os.kill(os.getpid(), signal.SIGTERM)
    Path(sys.argv[2], str(os.getpid())).touch()
    with open(sys.argv[3]):  # a pipe that nobody writes
        pass

workers.LOOK_S, folders.collate = 1, hang
feed = data.folder_feeds("folders", Path(sys.argv[1]), batch_size=5, seed=0, device="cpu", size=32, workers=2).train
feed._start_iterator()
while len(os.listdir(sys.argv[2])) < 2:
    time.sleep(0.01)
assert len(multiprocessing.active_children()) == 2
if sys.argv[4] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
# else: an ordinary end, which multiprocessing delays until its processes have ended
"""


@pytest.mark.nightly  # 5 s to start, and 10 where torch asks first
@pytest.mark.parametrize("end", ["killed", "ordinary"])
def test_hanging_workers_end_with_their_main_process_and_not_at_a_signal(pictures, tmp_path, end):
    seen, pipe = tmp_path / "seen", tmp_path / "pipe"
    seen.mkdir()
    os.mkfifo(pipe)
    done = subprocess.run([sys.executable, "-c", HANGING, pictures, seen, pipe, end], timeout=PATIENCE_S)
    assert done.returncode == (-signal.SIGKILL if end == "killed" else 0)
    late = time.monotonic() + PATIENCE_S
    while any(running(int(path.name)) for path in seen.iterdir()):
        assert time.monotonic() < late
        time.sleep(0.1)


def running(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
