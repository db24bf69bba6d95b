"""A run's folder: config, environment, metrics, checkpoints, result."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from calibnorm.lab.errors import UsageError
from calibnorm.lab.recipes import Recipe
from calibnorm.lab.training.checkpoints import write_whole
from calibnorm.lab.training.state import Row

CONFIG, RESULT, METRICS, ENVIRONMENT, CHECKPOINTS = (
    "config.json",
    "result.json",
    "metrics.csv",
    "environment.json",
    "checkpoints",
)


@dataclass(frozen=True)
class Result:
    """What a finished run came to.

    Args:
        test_accuracy: Top-1 on the test images after the last epoch, percent.
        test_top5: Top-5 likewise.
        best_test_accuracy: The highest of all epochs: chosen on the test images, so it flatters.
        best_epoch: The epoch of it, from 1.
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


def read_result(folder: Path) -> Result | None:
    """Return the result of a finished run, or None."""
    path = folder / RESULT
    return Result(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def claim(folder: Path, recipe: Recipe) -> None:
    """Write the recipe into a new folder, or compare it with the one that the folder holds.

    Raises:
        UsageError: The folder holds a run of another recipe, or something else.
    """
    path = folder / CONFIG
    if not path.exists():
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(f"{folder}: is not empty and holds no run; choose another folder")
        write_json(path, recipe.to_dict())
        return
    before, now = json.loads(path.read_text(encoding="utf-8")), recipe.to_dict()
    if changed := [key for key in now if now[key] != before.get(key)]:
        key = changed[0]
        raise UsageError(
            f"{folder}: holds a run with {key} {before.get(key)}, not {now[key]}; choose another folder, or remove it"
        )


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file, whole, that is good to read and to compare."""
    write_whole(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def write_metrics(path: Path, rows: Sequence[Row]) -> None:
    """Write metrics.csv anew: a resumed run's is that of an undisturbed one."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(f.name for f in fields(Row))
    writer.writerows(asdict(row).values() for row in rows)
    write_whole(path, text.getvalue().encode())
