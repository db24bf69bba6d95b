"""A run's folder: config, environment, metrics, checkpoints, weights, result."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from calibnorm.errors import RunFailed, UsageError
from calibnorm.lab.locks import exclusive
from calibnorm.lab.recipes import Recipe
from calibnorm.lab.training.clock import Timing
from calibnorm.lab.training.state import Row
from calibnorm.report.files import read_json, write_json, write_whole

CONFIG, RESULT, METRICS, TIMING, ENVIRONMENT, CHECKPOINTS = (
    "config.json",
    "result.json",
    "metrics.csv",
    "timing.csv",
    "environment.json",
    "checkpoints",
)
BEST, LAST, LOCK = "best.pt", "last.pt", ".lock"

OVERRIDABLE = frozenset(
    {
        "epochs",
        "test_every",
        "learning_rate",
        "momentum",
        "nesterov",
        "weight_decay",
        "schedule",
        "milestones",
        "gamma",
        "warmup_epochs",
        "label_smoothing",
        "clip_norm",
        "channels_last",
        "compile",
        "sync_statistics",
    }
)
"""Settings that may change under way; with others, the checkpoint would be of another network or of other data."""


NUMERICAL = ("torch", "backend", "device", "cpu", "processes", "threads", "convolutions")
"""What of the environment the last bits of a sum depend on."""


@dataclass(frozen=True)
class Result:
    """What a finished run came to.

    Args:
        test_accuracy: Top-1 on the test images after the last epoch, percent.
        test_top5: Top-5 likewise.
        best_test_accuracy: The highest of all epochs: chosen on the test images, so it flatters.
        best_epoch: The epoch of it, from 1; 0 where no epoch had a finite test loss.
        train_loss: Mean of the last epoch.
        parameters: Learnable numbers of the network.
        epochs: Passes over the training images.
        seconds: Time in the loop, over all resumptions.
    """

    test_accuracy: float
    test_top5: float
    best_test_accuracy: float
    best_epoch: int
    train_loss: float
    parameters: int
    epochs: int
    seconds: float

    def __str__(self) -> str:
        """Say it in a line."""
        after = "1 epoch" if self.epochs == 1 else f"{self.epochs} epochs"
        return (
            f"test accuracy {self.test_accuracy:.2f} % after {after} "
            f"(the best was {self.best_test_accuracy:.2f} % after {self.best_epoch})"
        )


def best_row(rows: Sequence[Row]) -> Row | None:
    """Return the first row with the highest test accuracy; an untested epoch or a test loss of NaN is never it."""
    finite = [row for row in rows if math.isfinite(row.test_loss)]
    return max(finite, key=lambda row: row.test_accuracy, default=None)


def read_result(folder: Path) -> Result | None:
    """Return the result of a finished run, or None.

    Raises:
        UsageError: Something else is in the file.
    """
    path = folder / RESULT
    if not path.exists():
        return None
    content = read_json(path)
    numbers = content is not None and all(type(value) in (int, float) for value in content.values())
    if content is None or not numbers or content.keys() != {f.name for f in fields(Result)}:
        raise UsageError(f"{path}: is damaged; remove it, and the same command makes it again from the last checkpoint")
    return Result(**content)


def finished(folder: Path, recipe: Recipe) -> Result | None:
    """Return the result of a folder that holds a finished run of just this recipe, or None."""
    result = read_result(folder)
    return result if result is not None and _settings(folder) == recipe.to_dict() else None


def _settings(folder: Path) -> dict[str, Any]:
    """Return what config.json holds; a setting that an older version had not has its default."""
    path = folder / CONFIG
    try:
        return Recipe.from_dict(json.loads(path.read_text(encoding="utf-8")), path).to_dict()
    except (ValueError, OSError) as error:
        raise UsageError(f"{path}: is damaged ({error}); choose another folder") from error


def check(folder: Path, recipe: Recipe, override: Sequence[str] = ()) -> dict[str, Any] | None:
    """Compare a recipe with what a folder holds.

    Returns:
        The settings of the run in the folder, None where there is none.

    Raises:
        UsageError: The folder holds something else, or a run of another recipe, but for what is named in `override`.
    """
    for name in override:
        if name not in OVERRIDABLE:
            raise UsageError(f"--override {name}: cannot change in a run; choose from {', '.join(sorted(OVERRIDABLE))}")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {folder}: is a file; name a folder")
    if (folder / CHECKPOINTS).exists() and not (folder / CHECKPOINTS).is_dir():
        raise UsageError(f"{folder / CHECKPOINTS}: is a file; move it away")
    path = folder / CONFIG
    if not path.exists():
        if folder.exists() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
            raise UsageError(f"--out {folder}: is not empty and holds no run; choose another folder")
        return None
    before, now = _settings(folder), recipe.to_dict()
    changed = [name for name in now if now[name] != before[name]]
    if other := [name for name in changed if name not in override]:
        name = other[0]
        change = f" To change it under way: --override {name}." if name in OVERRIDABLE else ""
        raise UsageError(
            f"--out {folder}: holds a run with {name} {before[name]}, not {now[name]}; choose another folder.{change}"
        )
    if changed and "epochs" not in changed and read_result(folder) is not None:
        raise UsageError(
            f"--override {changed[0]}: the run in {folder} is finished, and would not be trained any more; give it "
            "more --epochs, or choose another folder"
        )
    return before


def check_epochs(folder: Path, epochs: int, rows: Sequence[Row]) -> None:
    """Refuse fewer epochs than a run has done: the figures and the weights would be those of another run.

    Raises:
        UsageError: There are fewer; or as many, and the last one was not tested, as no last epoch was it.
    """
    done = len(rows)
    least = done + 1 if rows and math.isnan(rows[-1].test_accuracy) else done
    if epochs < least:
        untested = ", the last one without a test" if least > done else ""
        raise UsageError(
            f"--epochs {epochs}: the run in {folder} has done {done} already{untested}; choose {least} or more, or "
            "choose another folder"
        )


def claim(folder: Path, recipe: Recipe, override: Sequence[str] = ()) -> None:
    """Write the recipe into a folder; note what has changed where it holds a run.

    Raises:
        UsageError: As `check`.
    """
    before, now = check(folder, recipe, override), recipe.to_dict()
    if before is None:
        write_json(folder / CONFIG, now)
    elif changed := {name: [before[name], now[name]] for name in now if before[name] != now[name]}:
        notes = folder / "overrides.json"
        past = (read_json(notes) or {}).get("changes") if notes.exists() else []
        if not isinstance(past, list):
            raise UsageError(f"{notes}: is damaged; move it away")
        write_json(notes, {"changes": [*past, changed]})
        (folder / RESULT).unlink(missing_ok=True)  # of the settings of before
        write_json(folder / CONFIG, now)


def note_environment(folder: Path, environment: dict[str, Any]) -> dict[str, list[Any]]:
    """Write what a run starts on; where it goes on, add what has changed since under "later".

    A damaged file is put aside under another name.

    Returns:
        What has changed of `NUMERICAL`, by name: before and now.
    """
    path = folder / ENVIRONMENT
    first = read_json(path)
    if first is None:
        if path.exists():
            path.replace(path.with_name(f"{ENVIRONMENT}.damaged"))
        write_json(path, environment)
        return {}
    later: list[dict[str, Any]] = first.pop("later", [])
    last = first.copy()
    for change in later:
        last |= change
    if changed := {name: value for name, value in environment.items() if last.get(name) != value}:
        write_json(path, {**first, "later": [*later, changed]})
    return {name: [last.get(name), changed[name]] for name in NUMERICAL if name in changed}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a folder and keep other processes from training in it.

    Raises:
        UsageError: The folder cannot be written, or another process trains in it.
    """
    with ExitStack() as stack:
        try:
            ours = stack.enter_context(exclusive(folder / LOCK))
        except OSError as error:
            raise UsageError(f"--out {folder}: cannot be written ({error.strerror}); choose another folder") from error
        if not ours:
            raise UsageError(f"--out {folder}: another process is training in it; wait, or choose another")
        yield


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say in one line when a file cannot be written; what was there before is whole.

    Raises:
        RunFailed: In place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise RunFailed(
            f"{error.filename or folder}: cannot be written ({error.strerror}); the checkpoint of before is whole: "
            "make room, and start the same command again"
        ) from error


def write_rows(path: Path, kind: type[Row] | type[Timing], rows: Sequence[Row] | Sequence[Timing]) -> None:
    """Write a CSV anew, a line an epoch: a resumed run's metrics.csv is that of an undisturbed one."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(f.name for f in fields(kind))
    writer.writerows(asdict(row).values() for row in rows)
    write_whole(path, text.getvalue().encode())
