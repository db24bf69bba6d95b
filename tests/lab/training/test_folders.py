"""Training on folders of pictures, the wiring: the same loop, resumable, and errors that name the picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from calibnorm.errors import RunFailed, UsageError
from calibnorm.lab import data
from calibnorm.lab.recipes import Recipe
from calibnorm.lab.training import train
from calibnorm.lab.training.watchers import Watcher
from lab.training.tiny import PICTURES as RECIPE
from lab.training.tiny import Interrupting, assert_same_run, state


def go(recipe: Recipe, folder: Path, root: Path, workers: int = 0, watcher: Watcher | None = None) -> None:
    train(recipe, folder, data_root=root, accelerator="cpu", workers=workers, checkpoint_minutes=0, watcher=watcher)


def test_pictures_are_trained_on_and_a_stopped_run_goes_on(tmp_path: Path, root: Path) -> None:
    go(RECIPE, tmp_path / "whole", root)
    content = state(tmp_path / "whole")
    assert content["progress"]["step"] == 2 * (18 // 4)
    assert content["network"]["fc.weight"].shape[0] == 3
    with pytest.raises(KeyboardInterrupt):
        go(RECIPE, tmp_path / "run", root, watcher=Interrupting(6))
    go(RECIPE, tmp_path / "run", root, workers=1)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_damaged_picture_is_named(tmp_path: Path, root: Path) -> None:
    damaged = root / "folders" / "train" / "dog" / "3.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    with pytest.raises(UsageError, match=r"dog/3\.png"):
        go(replace(RECIPE, epochs=5), tmp_path / "run", root)


def test_a_worker_that_dies_ends_the_run(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        go(RECIPE, folder, root, watcher=Interrupting(2))

    def died(*args: object) -> None:
        raise data.WorkerError("a process that reads pictures died")

    with monkeypatch.context() as patch:
        patch.setattr("calibnorm.lab.training.run.Loop.epoch", died)
        with pytest.raises(RunFailed, match="died; the same command goes on from the last checkpoint"):
            go(RECIPE, folder, root)
