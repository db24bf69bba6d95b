"""Where the time of a training step goes: fetching the batch, forward, backward, update."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch

PHASES = ("data", "forward", "backward", "update")
SAMPLES = 500
"""Steps of an epoch that are timed at most: a median needs no more, and events are not free."""


@dataclass(frozen=True)
class Timing:
    """One line of timing.csv: medians over an epoch's steps. A resumed run's are others: no two runs take equally long.

    Args:
        epoch: From 1.
        data_ms: Milliseconds until a batch is there.
        forward_ms: Of the network and the loss.
        backward_ms: Of the gradients, with their exchange between processes.
        update_ms: Of clipping, optimizer, average of the weights and sums for metrics.csv.
        images_per_second: Over all processes, of the epoch's training as a whole.
    """

    epoch: int
    data_ms: float
    forward_ms: float
    backward_ms: float
    update_ms: float
    images_per_second: float

    def __str__(self) -> str:
        """Say it in a line, with the part of the input."""
        parts = {phase: getattr(self, f"{phase}_ms") for phase in PHASES}
        whole = sum(parts.values()) or 1.0
        split = ", ".join(f"{phase} {ms:.2f} ms ({100 * ms / whole:.1f} %)" for phase, ms in parts.items())
        return f"a step: {split}; {self.images_per_second:.0f} images/s"


class Clock(Protocol):
    """Measures the phases of steps."""

    def begin(self) -> None:
        """Start a step, before its batch is asked for."""

    def mark(self) -> None:
        """End a phase; called after each of `PHASES`, in their order."""

    def medians(self) -> dict[str, float] | None:
        """Return the milliseconds of each phase since the last call; None where no step was timed."""


class HostClock:
    """For a CPU, where a call returns when its work is done."""

    def __init__(self) -> None:
        self._steps: list[list[float]] = []
        self._marks: list[float] = []

    def begin(self) -> None:
        """See `Clock`."""
        self._marks = [time.perf_counter()]

    def mark(self) -> None:
        """See `Clock`."""
        self._marks.append(time.perf_counter())
        if len(self._marks) == len(PHASES) + 1:
            self._steps.append([1e3 * (b - a) for a, b in pairwise(self._marks)])

    def medians(self) -> dict[str, float] | None:
        """See `Clock`."""
        steps, self._steps = self._steps, []
        return _medians(steps)


class EventClock:
    """For a GPU: events on its own time line, read at the end of an epoch, so that no step waits for them.

    Args:
        steps: Of an epoch; at most `SAMPLES` of them are timed.
    """

    def __init__(self, steps: int) -> None:
        self._every = -(-steps // SAMPLES)
        self._count = 0
        self._marks: list[torch.cuda.Event] = []
        self._steps: list[list[torch.cuda.Event]] = []

    def begin(self) -> None:
        """See `Clock`."""
        self._count += 1
        self._marks = []
        if self._count % self._every == 0:
            self._record()

    def mark(self) -> None:
        """See `Clock`."""
        if self._marks:
            self._record()
            if len(self._marks) == len(PHASES) + 1:
                self._steps.append(self._marks)

    def _record(self) -> None:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self._marks.append(event)

    def medians(self) -> dict[str, float] | None:
        """See `Clock`."""
        steps, self._steps = self._steps, []
        if steps:
            steps[-1][-1].synchronize()
        return _medians([[a.elapsed_time(b) for a, b in pairwise(s)] for s in steps])


def make_clock(device: torch.device, steps: int) -> Clock:
    """Return the clock that suits a device."""
    return EventClock(steps) if device.type == "cuda" else HostClock()


def _medians(steps: list[list[float]]) -> dict[str, float] | None:
    if not steps:
        return None
    phases = zip(PHASES, zip(*steps, strict=True), strict=True)
    return {f"{phase}_ms": statistics.median(times) for phase, times in phases}
