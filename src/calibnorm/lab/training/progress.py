"""What a run knows besides its weights: where it is, and the figures so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from calibnorm.lab.training.clock import Timing


@dataclass(frozen=True)
class EpochFigures:
    """One line of metrics.csv: what is known after an epoch.

    Args:
        epoch: From 1.
        figures: By the names of the task's measures, in their order; those of the test are NaN where there was none.
        learning_rate: The rate of the epoch's last step.
    """

    epoch: int
    figures: dict[str, float]
    learning_rate: float

    @property
    def test_figures(self) -> list[float]:
        """The values of the figures of the test."""
        return [value for name, value in self.figures.items() if name.startswith("test_")]

    @property
    def tested(self) -> bool:
        """Whether there was a test after the epoch."""
        return not all(map(math.isnan, self.test_figures))

    def flat(self) -> dict[str, float]:
        """Return the columns of metrics.csv, which a checkpoint holds, too."""
        return {"epoch": self.epoch, **self.figures, "learning_rate": self.learning_rate}

    @classmethod
    def from_flat(cls, columns: Mapping[str, Any]) -> EpochFigures:
        """Return what `flat` gave."""
        figures = {name: value for name, value in columns.items() if name not in ("epoch", "learning_rate")}
        return cls(columns["epoch"], figures, columns["learning_rate"])


class LossWatch:
    """Remembers the first step whose loss was no number, on the device, so that a GPU's steps need not wait.

    Args:
        device: Where the losses are.
    """

    def __init__(self, device: torch.device) -> None:
        self._first = torch.zeros((), dtype=torch.int64, device=device)

    def see(self, loss: Tensor, step: int) -> None:
        """Look at the loss of a step, from 1."""
        bad = ~loss.isfinite() & (self._first == 0)
        self._first += bad * step

    def first_bad(self) -> int:
        """Return the step, 0 where all losses were finite; waits for the device."""
        return int(self._first)


@dataclass
class Progress:
    """Where a run is.

    Args:
        epoch: From 0: the one that is going on.
        step: Steps done since the start.
        rows: The figures of the epochs that are done.
        timings: What their steps took.
    """

    epoch: int = 0
    step: int = 0
    rows: list[EpochFigures] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        rows, timings = [row.flat() for row in self.rows], [asdict(timing) for timing in self.timings]
        return {"epoch": self.epoch, "step": self.step, "rows": rows, "timings": timings}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Progress:
        """Return what `state_dict` gave."""
        rows = [EpochFigures.from_flat(row) for row in state["rows"]]
        return cls(state["epoch"], state["step"], rows, [Timing(**timing) for timing in state["timings"]])
