"""Training on a GPU; what can be known of it without one is asked in test_average, test_machines and test_parts."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from calibnorm.lab.recipes import Recipe
from calibnorm.lab.training import machine, train
from calibnorm.lab.training.watchers import Watcher
from lab.training.tiny import EPOCHS, RICH, STEPS, TINY, Interrupting, state

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def go(recipe: Recipe, folder: Path, watcher: Watcher | None = None) -> None:
    train(recipe, folder, data_root=Path(), accelerator="cuda", checkpoint_minutes=0.0, watcher=watcher)


def column(folder: Path, file: str, name: str) -> list[float]:
    with (folder / file).open(newline="") as rows:
        return [float(row[name]) for row in csv.DictReader(rows)]


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_run_that_is_broken_off_goes_on_to_the_same_figures(precision: str, tmp_path: Path) -> None:
    recipe = replace(RICH, precision=precision)
    go(recipe, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        go(recipe, tmp_path / "run", Interrupting(STEPS + 2))
    go(recipe, tmp_path / "run")
    ours, theirs = (column(tmp_path / name, "metrics.csv", "train_loss") for name in ("run", "whole"))
    assert len(ours) == EPOCHS
    assert ours == pytest.approx(theirs, rel=1e-2)
    a, b = state(tmp_path / "run"), state(tmp_path / "whole")
    assert a["scaler"] == b["scaler"]
    assert bool(a["scaler"]) == (precision == "float16")
    assert a["average"]["updates"] == b["average"]["updates"] == EPOCHS * STEPS
    # The clock of events has timed every phase of each epoch's steps.
    assert all(value > 0 for value in column(tmp_path / "whole", "timing.csv", "forward_ms"))
    best = torch.load(tmp_path / "run" / "best.pt", weights_only=True)["network"]
    assert {tensor.device.type for tensor in best.values()} == {"cpu"}


@pytest.mark.nightly
def test_compiled_training_is_near_to_plain(tmp_path: Path) -> None:
    recipe = replace(TINY, epochs=1)
    go(replace(recipe, compile=True), tmp_path / "compiled")
    go(recipe, tmp_path / "plain")
    compiled, plain = (column(tmp_path / name, "metrics.csv", "train_loss") for name in ("compiled", "plain"))
    assert compiled == pytest.approx(plain, rel=1e-2)


def test_float32_convolutions_are_in_float32() -> None:
    draw = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=draw).cuda() for shape in ((8, 256, 16, 16), (256, 256, 3, 3)))
    exact = F.conv2d(x.double(), weight.double())

    def error(precision: str) -> float:
        with machine.convolutions(x.device, precision):  # type: ignore[arg-type]
            return float((F.conv2d(x, weight) - exact).norm() / exact.norm())

    # float32 has 23 bits of mantissa, TF32 has 10: 2^-24 and 2^-11 of a factor are lost at most.
    assert error("float32") < 2.0**-17
    if torch.cuda.is_tf32_supported():
        assert error("tf32") > 2.0**-17
