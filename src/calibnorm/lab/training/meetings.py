"""When the processes of a run meet, to compare what one of them alone may know."""

from __future__ import annotations

import time

import torch
from lightning.fabric import Fabric

from calibnorm.lab.training.processes import largest

MEET_S = 1.0
"""Seconds between two meetings, or the time of a step where that is longer. A signal must not wait long, and a GPU
must not wait often."""


class Meetings:
    """Counts steps, and says after which of them the processes meet: about once in `MEET_S`.

    A meeting is a collective, so it must come after the same step in all of them, and their clocks differ. So they
    agree, at each one, on the number of steps to the next, from the time of the last steps in the slowest of them.

    Args:
        fabric: The processes.
        most: Steps between two meetings, however short they are.
    """

    def __init__(self, fabric: Fabric, most: int) -> None:
        self._fabric, self._most = fabric, most
        self._every = 1
        self.begin()

    def begin(self) -> None:
        """Count from here: another loop begins, or goes on."""
        self._steps, self._since = 0, time.monotonic()

    def step(self) -> bool:
        """Count a step; return whether all meet after it."""
        self._steps += 1
        return self._steps >= self._every

    def largest(self, *values: int) -> tuple[int, ...]:
        """Return the largest of each value over the processes; all call it after a step after which they meet."""
        if self._fabric.device.type == "cuda":
            torch.cuda.synchronize(self._fabric.device)  # the time of steps is that of their work
        microseconds = int(1e6 * (time.monotonic() - self._since) / self._steps)
        slowest, *agreed = largest(self._fabric, microseconds, *values)
        self._every = max(1, min(self._most, int(1e6 * MEET_S) // max(1, slowest)))
        self.begin()
        return tuple(agreed)
