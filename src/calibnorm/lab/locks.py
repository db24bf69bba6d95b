"""One process a run: a lock on a file, which the kernel frees when the process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_held: set[int] = set()
"""The open files of this process's locks."""


def _let_go() -> None:
    """Leave the locks to the parent: a process that reads pictures for a moment longer would keep a killed one's."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def exclusive(path: Path) -> Iterator[bool]:
    """Hold a lock during a block, without waiting for it.

    The file stays: to remove it would let a third process lock a new file of the same name beside a second that holds
    the old one.

    Yields:
        Whether this process may go on: False while another holds the lock; True also on a disk without locks, such as
        some that several machines share, where nobody can know.

    Raises:
        OSError: The file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    _held.add(handle)
    try:
        yield _lock(handle)
    finally:
        if handle in _held:  # not in a child
            _held.remove(handle)
            os.close(handle)


def _lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
