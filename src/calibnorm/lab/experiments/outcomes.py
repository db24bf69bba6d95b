"""What a run has left in its folder: its curve, its result, or why there is none."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from calibnorm.lab.experiments.grid import Run
from calibnorm.lab.training.folder import METRICS, RESULT
from calibnorm.report.files import read_json

_NUMBERS = {"test_accuracy", "best_test_accuracy", "test_top5", "parameters", "seconds"}
State = Literal["finished", "diverged", "failed", "missing", "busy"]


@dataclass(frozen=True)
class Epoch:
    """A line of metrics.csv, as far as pictures need it."""

    epoch: int
    train_loss: float
    test_accuracy: float


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Args:
        state: "finished"; "diverged", its loss stopped being finite; "failed", an error or the end of its
            process; "missing", it was not started or not finished; "busy", another command trains it.
        accuracy: Test accuracy after the last epoch in percent; NaN unless finished.
        best: The highest of all epochs, which flatters: it is chosen on the test images.
        top5: After the last epoch.
        parameters: Learnable numbers of the network, 0 unless finished.
        seconds: Time in the training loop.
        message: Why it did not finish.
    """

    state: State
    accuracy: float = math.nan
    best: float = math.nan
    top5: float = math.nan
    parameters: int = 0
    seconds: float = math.nan
    message: str = ""

    @property
    def finished(self) -> bool:
        """Whether there is an accuracy."""
        return self.state == "finished"


def outcome(run: Run) -> Outcome:
    """Return what the run's folder says; "missing" where it neither finished nor diverged."""
    result = read_json(run.folder / RESULT)
    # One that lacks a number counts as none: training then names the file.
    if result is not None and result.keys() >= _NUMBERS:
        return Outcome(
            "finished",
            result["test_accuracy"],
            result["best_test_accuracy"],
            result["test_top5"],
            result["parameters"],
            result["seconds"],
        )
    if (note := read_json(run.failure)) is not None:
        return Outcome("diverged", message=str(note.get("message", "")))
    return Outcome("missing")


def curve(run: Run) -> list[Epoch]:
    """Return the epochs that a run has done so far."""
    return [
        Epoch(int(line["epoch"]), float(line["train_loss"]), float(line["test_accuracy"]))
        for line in _lines(run.folder / METRICS)
    ]


def epochs_done(runs: Sequence[Run]) -> int:
    """Return how many epochs the runs have done together; a run that diverged counts as done."""
    return sum(r.recipe.epochs if outcome(r).state != "missing" else len(_lines(r.folder / METRICS)) for r in runs)


def _lines(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []
