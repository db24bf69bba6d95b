"""Processes that read pictures: from their first instant on, signals are for the main process, and they end with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

T = TypeVar("T")

# Python 3.14's default on Linux, and that of a process which was started so, is a server that starts workers, seconds
# later, with signals of its own. On macOS, where forks of a process with threads may fail, the default is "spawn".
START_METHOD = "fork" if sys.platform == "linux" else None

WORKERS = 8
"""At most, for each feed."""

LOOK_S = 5
"""How often a worker that was told to end looks whether its main process is gone."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def readers(sharing: int = 1) -> int:
    """Return how many processes a feed of a folder set gets to read pictures, where so many runs share the machine.

    >>> readers(10_000)
    1
    """
    return max(1, min(WORKERS, cores() // sharing))


def cores() -> int:
    """Return how many cores this process may use; all of the machine's where the system does not say which are ours."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def held_back() -> Iterator[None]:
    """Let SIGINT and SIGTERM wait in a block, and in the workers that it starts until they call :func:`start_worker`.

    A process inherits the signals that its thread holds back. Else either would end a worker before torch lets it
    choose handlers. In this process another thread may take them, and Python then calls the handler in the main one:
    so the handlers wait, too.
    """
    came: list[int] = []
    handlers: dict[signal.Signals, Any] = {}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        if threading.current_thread() is threading.main_thread():
            known = [number for number in _SIGNALS if signal.getsignal(number) is not None]  # None: not of Python
            handlers = {number: signal.signal(number, lambda which, _: came.append(which)) for number in known}
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for late in dict.fromkeys(came):
            signal.raise_signal(late)


def started(start: Callable[[], T]) -> tuple[T, set[BaseProcess]]:
    """Return what a function returns, and the processes that it started, which are killed where it fails."""
    before = set(multiprocessing.active_children())
    try:
        return start(), set(multiprocessing.active_children()) - before
    except BaseException:
        kill(set(multiprocessing.active_children()) - before)
        raise


def start_worker(worker: int) -> None:
    """Leave signals to the main process, which ends its workers when it has written its checkpoint.

    A terminal sends SIGINT, and a batch system SIGTERM, to every process of a run; a worker that died of it would
    take the main process along before it has saved. A worker that waits for work looks after its main process every
    five seconds by itself (torch); one that hangs does so after SIGTERM.
    """
    main = os.getppid()

    def end_if_alone(*_: object) -> None:
        if os.getppid() != main:
            os._exit(1)
        signal.alarm(LOOK_S)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, end_if_alone)
    signal.signal(signal.SIGTERM, end_if_alone)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def end_workers(iterator: Any, workers: set[BaseProcess]) -> None:
    """Ask a DataLoader's workers to end, which takes torch ten seconds at most for each that does not, then kill."""
    iterator._shutdown_workers()
    kill(workers)


def kill(workers: set[BaseProcess]) -> None:
    """End processes at once."""
    for worker in workers:
        with suppress(RuntimeError):  # of torch's handler of SIGCHLD, where it still knows the worker
            worker.kill()
        worker.join()
