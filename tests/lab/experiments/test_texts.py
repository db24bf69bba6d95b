"""What reports say of how a run was trained, and of numbers."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

from calibnorm.lab.experiments.compare import Comparison
from calibnorm.lab.experiments.config import CompareConfig
from calibnorm.lab.experiments.grid import Cell, Grid
from calibnorm.lab.experiments.outcomes import Outcome
from calibnorm.lab.experiments.summary import summarize
from calibnorm.lab.recipes import Classification
from calibnorm.lab.training.folder import Result
from calibnorm.report.document import Document
from calibnorm.report.markdown import markdown

RECIPE = Classification(model="resnet11", data="digits", epochs=9, milestones=(3, 6))
OTHER = {
    "model": "resnet20",
    "data": "mnist",
    "epochs": 8,
    "noise_in": "train",
    "stages": "stage1",
    "weights": "imagenet",
    "train_images": 500,
    "image_size": 4,
    "augment": "crop",
    "mix": "fashion_mnist",
    "mixup": 0.2,
    "cutmix": 0.5,
    "test_every": 2,
    "patience": 3,
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
    assert {f.name for f in fields(Classification)} == OTHER.keys() | varied | {"mix_main", "mix_others"}
    usual = RECIPE.in_words()
    seen = {name: replace(RECIPE, **{name: value}).in_words() for name, value in OTHER.items()}  # type: ignore[arg-type]
    assert [name for name, text in seen.items() if text == usual] == []
    assert len(set(seen.values())) == len(seen)
    assert replace(RECIPE, norm="rbn", noise=(0.5, 0.2), seed=4).in_words() == usual


def test_a_mixed_batch_has_the_images_of_both_sets() -> None:
    text = replace(RECIPE, mix="mnist", mix_main=100, mix_others=240).in_words()
    assert "100 of them and 240 of mnist a batch" in text
    assert ", batch 340, " in text


@pytest.mark.parametrize(("finished", "said"), [(True, "1 difference is looked at"), (False, None)])
def test_a_difference_of_runs_that_failed_is_not_counted(finished: bool, said: str | None, tmp_path: Path) -> None:
    cells = [Cell("clean", norm, replace(RECIPE, norm=norm), Path(norm)) for norm in ("bn", "rbn")]
    result = Result({"test_accuracy": 50.0}, 1, parameters=1, epochs=1, seconds=1.0)
    found = Outcome("finished", result) if finished else Outcome("failed", message="x")
    grid = Grid(tmp_path, cells, range(1), {"clean": "bn"})
    lines = summarize(grid, {run.folder: found for run in grid.runs()})
    comparison = Comparison(grid, lines, [], 1.0, config=CompareConfig(), recipe=RECIPE)
    limits = markdown(Document("", [comparison.limits()]))
    assert ("looked at" in limits) == finished
    assert said is None or said in limits
