"""When several processes look together at what one of them alone may know."""

from __future__ import annotations

import time

import torch
from lightning.fabric import Fabric

from calibnorm.lab.training.processes import largest

LOOK_S = 1.0
"""Seconds between two looks, or a step where it takes longer: a signal must not wait, nor a GPU often."""


class Looks:
    """Counts steps, and says after which of them the processes look together: about once in `LOOK_S`.

    Looking is a collective, so it must come after the same step in all of them, and their clocks differ. So they agree,
    at each look, on the number of steps to the next one, from the time of the last steps in the slowest of them.

    Args:
        fabric: The processes.
        most: Steps between two looks, however short they are.
    """

    def __init__(self, fabric: Fabric, most: int) -> None:
        self._fabric, self._most = fabric, most
        self._every = 1
        self.begin()

    def begin(self) -> None:
        """Count from here: another loop begins, or goes on."""
        self._steps, self._since = 0, time.monotonic()

    def step(self) -> bool:
        """Count a step; return whether all look after it."""
        self._steps += 1
        return self._steps >= self._every

    def together(self, *values: int) -> tuple[int, ...]:
        """Return the largest of each value over the processes; all of them call it after a step for which all look."""
        if self._fabric.device.type == "cuda":
            torch.cuda.synchronize(self._fabric.device)  # the time of steps is that of their work
        microseconds = int(1e6 * (time.monotonic() - self._since) / self._steps)
        slowest, *agreed = largest(self._fabric, microseconds, *values)
        self._every = max(1, min(self._most, int(1e6 * LOOK_S) // max(1, slowest)))
        self.begin()
        return tuple(agreed)
