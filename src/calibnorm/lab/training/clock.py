"""Where the time of a training step goes: fetching the batch, forward, backward, update."""

from __future__ import annotations

import statistics
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

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
        forward_ms: Milliseconds of the network, its loss, and the sums for metrics.csv.
        backward_ms: Milliseconds of the gradients, with their exchange between processes.
        update_ms: Milliseconds of clipping, the optimizer and the average of the weights.
        images_per_second: Over all processes, of the epoch's training as a whole.
    """

    epoch: int
    data_ms: float
    forward_ms: float
    backward_ms: float
    update_ms: float
    images_per_second: float

    @property
    def step_ms(self) -> float:
        """Milliseconds of a step."""
        return self.data_ms + self.forward_ms + self.backward_ms + self.update_ms

    def __str__(self) -> str:
        """Say it in a line, with the part of the input."""
        parts = {phase: getattr(self, f"{phase}_ms") for phase in PHASES}
        whole = self.step_ms or 1.0
        split = ", ".join(f"{phase} {ms:.2f} ms ({100 * ms / whole:.1f} %)" for phase, ms in parts.items())
        return f"a step: {split}; {self.images_per_second:.0f} images/s"


class Clock(ABC):
    """Measures the phases of steps.

    Args:
        steps: Steps of an epoch; at most `SAMPLES` of them are timed.
    """

    def __init__(self, steps: int = 1) -> None:
        self._every = -(-steps // SAMPLES)
        self._count = 0
        self._marks: list[Any] = []
        self._steps: list[list[Any]] = []

    def begin(self) -> None:
        """Start a step, before its batch is asked for."""
        self._count += 1
        self._marks = [] if self._count % self._every else [self._now()]

    def mark(self) -> None:
        """End a phase; called after each of `PHASES`, in their order."""
        if self._marks:
            self._marks.append(self._now())
            if len(self._marks) == len(PHASES) + 1:
                self._steps.append(self._marks)

    def medians(self) -> dict[str, float] | None:
        """Return the milliseconds of each phase since the last call; None where no step was timed."""
        steps, self._steps = self._steps, []
        if not steps:
            return None
        times = zip(*self._milliseconds(steps), strict=True)
        return {f"{phase}_ms": statistics.median(each) for phase, each in zip(PHASES, times, strict=True)}

    @abstractmethod
    def _now(self) -> Any:
        """Return a mark."""

    @abstractmethod
    def _milliseconds(self, steps: list[list[Any]]) -> list[list[float]]:
        """Return the times between the marks of each step."""


class HostClock(Clock):
    """For a CPU, where a call returns when its work is done."""

    def _now(self) -> float:
        return time.perf_counter()

    def _milliseconds(self, steps: list[list[Any]]) -> list[list[float]]:
        return [[1e3 * (b - a) for a, b in pairwise(step)] for step in steps]


class EventClock(Clock):
    """For a GPU: events on its own time line, read at the end of an epoch, so that no step waits for them."""

    def _now(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _milliseconds(self, steps: list[list[Any]]) -> list[list[float]]:
        steps[-1][-1].synchronize()
        return [[a.elapsed_time(b) for a, b in pairwise(step)] for step in steps]


def make_clock(device: torch.device, steps: int) -> Clock:
    """Return the clock that suits a device."""
    return EventClock(steps) if device.type == "cuda" else HostClock()
