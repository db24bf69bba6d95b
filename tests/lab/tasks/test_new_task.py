"""A task of a file, without a line changed elsewhere: it trains, is killed and comes to the same end, bit for bit."""

from __future__ import annotations

import csv
import inspect
import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from calibnorm.errors import UsageError
from calibnorm.lab.recipes import Recipe
from calibnorm.lab.training import watchers
from lab.tasks import angles
from lab.tasks.angles import Angles, Turn
from lab.training import children, tiny
from lab.training.test_processes import pair_of_ranks

RECIPE = Angles(
    model="of its own", data="digits", norm="iebn", epochs=3, batch_size=128, learning_rate=0.01, schedule="cosine",
    ema=0.5, clip_norm=1.0,
)  # fmt: skip
STEPS = 1198 // 128

pytestmark = pytest.mark.untraced


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("angles") / "run"
    tiny.run(RECIPE, folder)
    return folder


def test_the_task_is_small() -> None:
    assert len(inspect.getsource(angles).splitlines()) < 100


def test_it_learns_and_its_files_have_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = tiny.run(RECIPE, tmp_path, watcher=watchers.Lines())
    assert set(result.figures) == {"train_loss", "test_loss", "test_angle_error", "best_test_angle_error"}
    with (tmp_path / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["epoch", "train_loss", "test_loss", "test_angle_error", "learning_rate"]
    errors = [float(row["test_angle_error"]) for row in rows]
    # Who always says "not turned" is wrong by half of the largest angle.
    assert result.test_angle_error == errors[-1] < 0.7 * RECIPE.widest / 2
    assert result.best_test_angle_error == min(errors), "less is better"
    assert result.best_epoch == errors.index(min(errors)) + 1
    assert torch.load(tmp_path / "best.pt", weights_only=True)["test_angle_error"] == min(errors)
    lines = capsys.readouterr().out.splitlines()
    assert f"test loss {float(rows[0]['test_loss']):.4f} angle error {errors[0]:.3f} rad  learning rate" in lines[0]
    assert result.sentence(Turn.headline).startswith(f"test angle error {errors[-1]:.3f} rad after 3 epochs (the best")
    settings = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert settings["task"] == "angles"
    assert Recipe.from_dict(settings) == RECIPE
    assert tiny.run(RECIPE, tmp_path) == result, "finished, and not run again"


@pytest.mark.parametrize("step", [3, STEPS, 2 * STEPS - 2])
def test_killed_it_goes_on_bit_for_bit(step: int, tmp_path: Path, undisturbed: Path) -> None:
    folder = tmp_path / "run"
    assert children.run(children.train_and_die, RECIPE, folder, 0.0, "step", step) == -signal.SIGKILL
    assert tiny.state(folder)["progress"]["step"] in (step - 1, step)
    tiny.run(RECIPE, folder)
    tiny.assert_same_run(folder, undisturbed)


def test_a_folder_of_another_task_or_setting_is_refused(tmp_path: Path) -> None:
    tiny.run(replace(RECIPE, epochs=1), tmp_path / "angles")
    with pytest.raises(UsageError, match=r"holds a run with task angles, not classification; choose another folder"):
        tiny.run(tiny.TINY, tmp_path / "angles")
    with pytest.raises(UsageError, match=r"holds a run with widest 1.0, not 2.0; choose another folder\.$"):
        tiny.run(replace(RECIPE, epochs=1, widest=2.0), tmp_path / "angles")
    with pytest.raises(UsageError, match=r"task 'shapes' is not known; there are classification, .*angles"):
        Recipe.from_dict({**RECIPE.to_dict(), "task": "shapes"})


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=1, learning_rate=0.001, ema=None)
    statuses, heard = pair_of_ranks(children.rank_of_recipe, recipe, tmp_path / "two")
    assert statuses == [0, 0], heard
    one, two = (tiny.run(recipe, tmp_path / "one"), json.loads((tmp_path / "two" / "result.json").read_text()))
    assert two["test_angle_error"] == pytest.approx(one.test_angle_error, rel=0.05)
    assert two["test_loss"] == pytest.approx(one.test_loss, rel=0.05)
