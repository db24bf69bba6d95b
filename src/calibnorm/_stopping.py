"""Signals that come to a command while it has nothing to save: it ends at once, in a line, with status 130 or 143.

`calibnorm/__init__.py` imports this before torch. Imports take seconds, and a KeyboardInterrupt that is raised in one
ends in a traceback, in another error, such as RecursionError, or is lost, and the command goes on. So nothing is
raised. Whoever has something to save notes signals meanwhile (`lab/training/interruption.py`). A process that imports
the library for another purpose keeps its signals as they are.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SHOW_CURSOR = b"\x1b[?25h"
"""A progress bar hides it."""

_process = 0  # the one that has begun; another that is forked from it inherits its handlers
_advice = ""


@contextmanager
def advised(text: str) -> Iterator[None]:
    """Say this, too, when a signal ends the command at once in a block, such as "; nothing was written"."""
    global _advice
    _advice = text
    try:
        yield
    finally:
        _advice = ""


def runs_the_command() -> bool:
    """Return whether this process is the command: its script, or Python with ``-m calibnorm``, which it now imports."""
    script = sys.argv[0] if getattr(sys, "argv", None) else ""
    if script == "-m":  # so long as Python looks for the module
        module = sys.orig_argv[-len(sys.argv)].removeprefix("-m")
        return module in ("calibnorm", "calibnorm.bench")
    return os.path.basename(script) == "calibnorm"


def speaks() -> bool:
    """Return whether this is the process of a run that speaks, by what torchrun or the first one told it."""
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


def name_of(number: int) -> str:
    """Return how a signal is called.

    >>> name_of(2), name_of(15)
    ('Ctrl-C', 'SIGTERM')
    """
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def end_at_once(number: int, frame: FrameType | None = None) -> None:
    """End this process because of a signal; the one that speaks says so in a line."""
    if _process not in (0, os.getpid()):
        os._exit(128 + number)
    behind = "\n" if number == signal.SIGINT else ""  # a terminal has shown ^C
    end(128 + number, f"stopped by {name_of(number)}{_advice}" if speaks() else "", behind)


def end(status: int, text: str = "", behind: str = "") -> NoReturn:
    """End this process at once, with its terminal in order and without the processes that it has forked.

    Args:
        status: Its exit status.
        text: Said on standard error, if anything.
        behind: Written before it.
    """
    with suppress(OSError):  # whoever read the output may have left
        if os.isatty(1):
            os.write(1, SHOW_CURSOR)
        if text:
            os.write(2, f"{behind}calibnorm: {text}\n".encode())
    if (multiprocessing := sys.modules.get("multiprocessing")) is not None:
        for child in multiprocessing.active_children():
            child.kill()
    os._exit(status)


def begin() -> None:
    """Let SIGINT and SIGTERM end this process at once, but for one that is ignored, as in a shell's background job."""
    global _process
    _process = os.getpid()
    for number, usual in zip(SIGNALS, (signal.default_int_handler, signal.SIG_DFL), strict=True):
        if signal.getsignal(number) == usual:
            signal.signal(number, end_at_once)


if runs_the_command():
    begin()
