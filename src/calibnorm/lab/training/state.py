"""What a run knows besides its weights: where it is, and the figures so far."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from calibnorm.lab.training.clock import Timing


@dataclass(frozen=True)
class Row:
    """One line of metrics.csv, the figures after an epoch.

    Args:
        epoch: From 1.
        train_loss: Mean over the epoch's images, as they were trained on (label smoothing included).
        train_accuracy: Percent of them that the network got right while it was training.
        test_loss: Mean cross-entropy on the test images.
        test_accuracy: Top-1, percent.
        test_top5: Percent of the test images whose label is among the five highest scores.
        learning_rate: Of the epoch's last step.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    test_top5: float
    learning_rate: float


class Sums:
    """Sums over images of loss and hits, kept on the device in float64, so that no step waits for them.

    Args:
        device: Where the losses are.
    """

    def __init__(self, device: torch.device) -> None:
        self.totals = torch.zeros(4, dtype=torch.float64, device=device)

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: its mean loss, its scores (B, classes), its labels (B,)."""
        with torch.no_grad():
            top = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
            images = self.totals.new_full((), len(labels))  # made on the device: a copy from here would wait for it
            self.totals += torch.stack([loss.double() * images, top[:, 0].double().sum(), top.double().sum(), images])

    def means(self) -> tuple[float, float, float]:
        """Return the mean loss and the top-1 and top-5 accuracy in percent; waits for the device."""
        return self.means_of(self.totals)

    @staticmethod
    def means_of(totals: Tensor) -> tuple[float, float, float]:
        """Return what `means` does, of sums that may be those of several processes."""
        loss, top1, top5, images = totals.tolist()
        return loss / images, 100 * top1 / images, 100 * top5 / images


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
    rows: list[Row] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "rows": [asdict(row) for row in self.rows],
            "timings": [asdict(timing) for timing in self.timings],
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Progress:
        """Return what `state_dict` gave."""
        rows, timings = [Row(**row) for row in state["rows"]], [Timing(**timing) for timing in state["timings"]]
        return cls(state["epoch"], state["step"], rows, timings)


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the mean cross-entropy in float32, whatever the network's arithmetic."""
    return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
