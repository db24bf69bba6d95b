"""What reports say of how a run was trained, and of numbers."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

from calibnorm.lab.experiments import texts
from calibnorm.lab.experiments.compare import Report
from calibnorm.lab.experiments.config import CompareConfig
from calibnorm.lab.experiments.grid import Cell, Grid
from calibnorm.lab.experiments.outcomes import Outcome
from calibnorm.lab.experiments.statistics import paired
from calibnorm.lab.experiments.summary import Line
from calibnorm.lab.recipes import Classification, Recipe

RECIPE = Classification(model="resnet11", data="digits", epochs=9, milestones=(3, 6))
OTHER = {
    "model": "resnet20",
    "data": "mnist",
    "epochs": 8,
    "noise_in": "train",
    "stages": "stage1",
    "train_images": 500,
    "image_size": 4,
    "augment": "crop",
    "mix": "fashion_mnist",
    "test_every": 2,
    "batch_size": 64,
    "learning_rate": 0.2,
    "momentum": 0.8,
    "nesterov": True,
    "weight_decay": 0.01,
    "decay_gates": True,
    "schedule": "cosine",
    "milestones": (4,),
    "gamma": 0.2,
    "warmup_epochs": 2,
    "label_smoothing": 0.1,
    "clip_norm": 1.5,
    "ema": 0.99,
    "precision": "bfloat16",
    "channels_last": True,
    "compile": True,
    "sync_statistics": False,
}


def test_every_setting_that_all_runs_share_is_said() -> None:
    varied = {"norm", "noise", "seed"}
    assert {f.name for f in fields(Recipe)} == OTHER.keys() | varied | {"mix_main", "mix_others"}
    usual = texts.setting(RECIPE)
    seen = {name: texts.setting(replace(RECIPE, **{name: value})) for name, value in OTHER.items()}  # type: ignore[arg-type]
    assert [name for name, text in seen.items() if text == usual] == []
    assert len(set(seen.values())) == len(seen)
    assert texts.setting(replace(RECIPE, norm="rbn", noise=(0.5, 0.2), seed=4)) == usual


def test_a_mixed_batch_has_the_images_of_both_sets() -> None:
    text = texts.setting(replace(RECIPE, mix="mnist", mix_main=100, mix_others=240))
    assert "100 of them and 240 of mnist a batch" in text
    assert ", batch 340, " in text


@pytest.mark.parametrize(("finished", "said"), [(True, "1 difference is looked at"), (False, None)])
def test_a_difference_of_runs_that_failed_is_not_counted(finished: bool, said: str | None, tmp_path: Path) -> None:
    cells = [Cell("clean", norm, replace(RECIPE, norm=norm), Path(norm)) for norm in ("bn", "rbn")]
    found = Outcome("finished", 50.0) if finished else Outcome("failed", message="x")
    values = {0: 50.0} if finished else {}
    lines = [Line(cell, {0: found}, 10.0, None if i == 0 else paired(values, values)) for i, cell in enumerate(cells)]
    grid = Grid(tmp_path, cells, range(1), {"clean": "bn"})
    limits = " ".join(Report(CompareConfig(), RECIPE, grid, lines, [], 1.0).limits())
    assert ("looked at" in limits) == finished
    assert said is None or said in limits
