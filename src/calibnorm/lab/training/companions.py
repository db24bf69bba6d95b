"""The further processes of `--devices`: started as this one was, watched while they train, and not left alone.

Lightning starts such processes too, but kills the first one without a word when another has ended, and those that wait
for a first one that is gone do so for half an hour.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

from calibnorm import _stopping

LOOK_S = 0.2
OBEY_S = 2.0
"""What the first process has to end by itself when a signal has ended another before there was anything to save."""
KILLED_S = 5.0
"""The same when another was killed, and said nothing."""
FAILED_S = 20.0
"""The same when another has failed, and said so: `ending.py` is quicker, unless the processes have not met yet."""
ALONE_S = 10.0
"""How long after the first process a further one ends, where `ending.py` has not ended it before."""

AGAIN = "the same command goes on from the last checkpoint"

_started: list[subprocess.Popen[bytes]] = []


def start(count: int, address: str, port: int) -> None:
    """Start the other processes of so many on this machine, each with the words of this one, and watch them.

    Args:
        count: Processes of the run, with this one.
        address: Where they meet.
        port: Where they meet.
    """
    place = {"MASTER_ADDR": address, "MASTER_PORT": str(port), "NODE_RANK": "0", "WORLD_SIZE": str(count)}
    os.environ.update(place, LOCAL_RANK="0")
    command = [sys.executable, *sys.orig_argv[1:]]
    _started.extend(
        subprocess.Popen(command, env={**os.environ, "LOCAL_RANK": str(number)}) for number in range(1, count)
    )
    threading.Thread(target=_watch, daemon=True, name="companions").start()


def end_with_first() -> None:
    """Watch the process that started this one, and end some time after it."""
    threading.Thread(target=_watch_first, args=(os.getppid(),), daemon=True, name="first").start()


def killed(patience: float = 0.0) -> str | None:
    """Return in words which process that this one started was killed, waiting so many seconds for it; or None."""
    until = time.monotonic() + patience
    while True:
        for number, process in enumerate(_started, start=1):
            if (code := process.poll()) is not None and code < 0:
                return f"process {number} ended with {how_ended(code)}"
        if time.monotonic() >= until or not _started:
            return None
        time.sleep(LOOK_S / 4)


def how_ended(code: int) -> str:
    """Return a process's exit code in words; a negative one is a signal's.

    >>> how_ended(3), how_ended(-9)
    ('status 3', 'signal SIGKILL, perhaps for want of memory')
    """
    if code >= 0:
        return f"status {code}"
    why = ", perhaps for want of memory" if code == -signal.SIGKILL else ""
    return f"signal {signal.Signals(-code).name}{why}"


def _watch() -> None:
    """End this process after another that has failed, where it does not do so by itself: it may wait for that one."""
    while not (codes := [code for process in _started if (code := process.poll())]):
        if all(process.poll() == 0 for process in _started):
            return
        time.sleep(LOOK_S)
    code = codes[0]
    told_to = code - 128 if code - 128 in _stopping.SIGNALS else 0
    time.sleep(OBEY_S if told_to else KILLED_S if code < 0 else FAILED_S)
    for process in _started:
        process.kill()
    if told_to:
        _stopping.end_at_once(told_to)
    _stopping.end(1, f"{killed()}; {AGAIN}") if code < 0 else _stopping.end(code)


def _watch_first(first: int) -> None:
    while os.getppid() == first:
        time.sleep(LOOK_S)
    time.sleep(ALONE_S)
    number = os.environ.get("LOCAL_RANK")
    _stopping.end(1, f"process {number}: the first process is gone; {AGAIN}")
