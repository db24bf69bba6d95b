"""A run's folder that somebody has changed: what is damaged or in the way is named, and nothing is half-changed."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from calibnorm.errors import UsageError
from calibnorm.lab import tasks
from calibnorm.lab.training import folder as folders
from lab.training.tiny import STEPS, TINY, Interrupting, run


def test_a_damaged_environment_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / "environment.json").write_text("zz", encoding="utf-8")
    assert folders.note_environment(tmp_path, {"threads": 1}) == {}
    assert json.loads((tmp_path / "environment.json").read_text(encoding="utf-8")) == {"threads": 1}
    assert (tmp_path / "environment.json.damaged").read_text(encoding="utf-8") == "zz"


def test_an_override_of_a_finished_run_is_refused(tmp_path: Path) -> None:
    recipe = replace(TINY, epochs=1)
    run(recipe, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.json")}
    with pytest.raises(UsageError, match=r"override=learning_rate: the run in .* is finished.* give it more epochs"):
        run(replace(recipe, learning_rate=0.01), tmp_path, override=["learning_rate"])
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.json")} == before
    longer = run(replace(recipe, learning_rate=0.01, epochs=2), tmp_path, override=["learning_rate", "epochs"])
    assert longer.epochs == 2


def test_damaged_notes_of_a_run_are_named(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(TINY, tmp_path, watcher=Interrupting(STEPS + 1))
    (tmp_path / "overrides.json").write_text("zz", encoding="utf-8")
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(UsageError, match=r"overrides\.json: is damaged; move it away"):
        run(replace(TINY, learning_rate=0.01), tmp_path, override=["learning_rate"])
    assert (tmp_path / "config.json").read_bytes() == before
    names = [*folders.last_figures(tasks.of(TINY)), "best_test_accuracy", *(f.name for f in fields(folders.Result)[1:])]
    result = dict.fromkeys(names, "x")
    (tmp_path / "result.json").write_text(json.dumps(result), encoding="utf-8")
    with pytest.raises(UsageError, match=r"result\.json: is damaged"):
        run(TINY, tmp_path)


def test_a_file_in_the_place_of_the_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").touch()
    with pytest.raises(UsageError, match=r"checkpoints: is a file; move it away"):
        run(TINY, tmp_path)
