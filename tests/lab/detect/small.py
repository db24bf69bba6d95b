"""Detection of a second: a miniature of a few pictures, detectors of eight channels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from calibnorm.lab import recipes
from calibnorm.lab.recipes import Boxes

AnyBoxes = TypeVar("AnyBoxes", bound=Boxes)
CPU = ["--accelerator", "cpu", "--workers", "0", "--no-progress"]


def small(task: str, data: Path, **others: Any) -> Boxes:
    """Return the recipe of a task: two epochs of two steps."""
    chosen = recipes.recipe(f"{task}-mini")
    assert isinstance(chosen, Boxes)
    sizes: dict[str, Any] = {"image_size": (64,), "longest_side": 64, "channels": 8, "head_features": 16, "rois": 8}
    sizes |= {
        "proposals": 20,
        "epochs": 2,
        "batch_size": 4,
        "rate_for": 4,
        "warmup_steps": 1,
        "test_every": 1,
        "data": str(data),
    }
    return replace(chosen, **sizes | ({"semantic_channels": 8} if task == "panoptic" else {}) | others)


def words(task: str, data: Path, **others: Any) -> list[str]:
    """Return the options of a command line that replace what `small` does."""
    before, found = vars(recipes.recipe(f"{task}-mini")), [f"{task}-mini"]
    for name, value in vars(small(task, data, **others)).items():
        option = name.replace("_", "-")
        if value == before[name] and name != "data":
            continue
        if isinstance(value, bool):
            found.append(f"--{option}" if value else f"--no-{option}")
        else:
            found += [f"--{option}", *map(str, value if isinstance(value, tuple) else (value,))]
    return found


def changed(data: Path, folder: Path, name: str, change: Callable[[Any], object]) -> Path:
    """Return a copy of a miniature in which a function has changed a file of annotations."""
    shutil.copytree(data, folder)
    path = folder / "annotations" / f"{name}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return folder
