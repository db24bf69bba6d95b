"""What a run has left in its folder: its curve, its result, or why there is none."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from calibnorm.errors import UsageError
from calibnorm.lab.experiments.grid import Run
from calibnorm.lab.training.folder import METRICS, Result, read_result
from calibnorm.report.files import read_csv, read_json

State = Literal["finished", "diverged", "failed", "missing", "busy"]


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Args:
        state: "finished"; "diverged", its loss stopped being finite; "failed", an error or the end of its
            process; "missing", it was not started or not finished; "busy", another command trains it.
        result: Of a run that finished.
        message: Why it did not finish.
    """

    state: State
    result: Result | None = None
    message: str = ""

    @property
    def finished(self) -> bool:
        """Whether there is a result."""
        return self.result is not None


def outcome(run: Run) -> Outcome:
    """Return what the run's folder says; "missing" where it neither finished nor diverged."""
    with suppress(UsageError):  # a damaged result counts as none: training then names the file
        if (result := read_result(run.folder)) is not None:
            return Outcome("finished", result)
    if (note := read_json(run.failure)) is not None:
        return Outcome("diverged", message=str(note.get("message", "")))
    return Outcome("missing")


def curve(run: Run) -> list[dict[str, float]]:
    """Return the epochs that a run has done so far: the numbers of each by name, as metrics.csv has them."""
    return [{name: float(value) for name, value in line.items()} for line in read_csv(run.folder / METRICS)]


def epochs_done(runs: Sequence[Run]) -> int:
    """Return how many epochs the runs have done together; a run that diverged counts as done."""
    return sum(r.recipe.epochs if outcome(r).state != "missing" else len(curve(r)) for r in runs)


def outcomes(runs: Sequence[Run], failed: dict[Path, Outcome]) -> dict[Path, Outcome]:
    """Return how runs ended, by folder.

    Args:
        runs: The runs.
        failed: What is known of runs that left nothing in their folders.
    """
    found = {run.folder: outcome(run) for run in runs}
    return {folder: failed.get(folder, o) if o.state == "missing" else o for folder, o in found.items()}
