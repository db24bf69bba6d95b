"""A miniature, and a run of each task on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from calibnorm.lab.data.coco import miniature
from lab.calling import main
from lab.detect.small import CPU, words


@pytest.fixture(scope="package")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures to train on and eight to validate on, with a crowd and a picture without things in both."""
    folder = tmp_path_factory.mktemp("mini") / "mini"
    miniature.make(folder, 10, 8, 41)
    return folder


@pytest.fixture(scope="package")
def runs(mini: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of the command for boxes and for panoptic maps."""
    root = tmp_path_factory.mktemp("runs")
    found = {task: root / task for task in ("box", "panoptic")}
    for task, folder in found.items():
        assert main(["detect", "train", *words(task, mini), "--out", str(folder), *CPU]) == 0
    return found
