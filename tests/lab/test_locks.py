"""Locks between processes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from calibnorm.lab import locks

LOADED = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("locks", sys.argv[1])
locks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(locks)
from pathlib import Path
"""
HOLDER = f"""{LOADED}
with locks.exclusive(Path(sys.argv[2])) as ours:
    print(ours, flush=True)
    sys.stdin.readline()
"""
FORKING = f"""{LOADED}
import os, time
with locks.exclusive(Path(sys.argv[2])) as ours:
    print(ours, flush=True)
    if not os.fork():
        print(os.getpid(), flush=True)
    time.sleep(60)
"""


def hold(path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, str(locks.__file__), str(path)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_two_processes_never_hold_one_lock_and_the_kernel_frees_it(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "seed0.lock"
    with hold(path) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "True\n"
        with hold(path) as second:
            assert second.communicate("\n")[0] == "False\n"
        with locks.exclusive(path) as ours:
            assert not ours
        with locks.exclusive(tmp_path / "other.lock") as ours:
            assert ours
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    with locks.exclusive(path) as ours:
        assert ours
        with hold(path) as third:
            assert third.communicate("\n")[0] == "False\n"


def test_a_forked_process_holds_no_lock_of_its_parent(tmp_path: Path) -> None:
    """As the processes that read pictures do, for seconds after the one that trains was killed."""
    command = [sys.executable, "-c", FORKING, str(locks.__file__), str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "True\n"
        child = int(first.stdout.readline())
        with locks.exclusive(tmp_path / "lock") as ours:
            assert not ours, "the parent's stays"
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        with locks.exclusive(tmp_path / "lock") as ours:
            assert ours
        os.kill(child, signal.SIGKILL)  # it was there still


def test_a_disk_without_locks_keeps_nobody_from_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with locks.exclusive(tmp_path / "lock") as ours:
        assert ours
