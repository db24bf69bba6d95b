"""Signals that end a run: noted when they come, obeyed between two steps."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from calibnorm.errors import Stopped


class Interruption:
    """Notes SIGINT and SIGTERM inside a ``with`` block; called, it returns the signal's number, or 0.

    A second Ctrl-C does what it did before the block: it ends a command at once, and raises KeyboardInterrupt in other
    programs. A signal that was ignored before (a shell's background jobs ignore SIGINT) stays ignored.
    """

    def __init__(self) -> None:
        self._number = 0
        self._before: dict[signal.Signals, Any] = {}

    def __call__(self) -> int:
        """Return the number of the signal that came, 0 for none."""
        return self._number

    def __enter__(self) -> Interruption:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._number and number == signal.SIGINT:
            self._before[signal.SIGINT](number, frame)
        self._number = number

    def obey(self) -> None:
        """Raise Stopped where a signal has come."""
        if self._number:
            raise Stopped(self._number, "stopped")
