"""A run that ends when its tests get no better: when that is, on resumption, and when it is asked to go on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from calibnorm.errors import UsageError
from calibnorm.lab import tasks
from calibnorm.lab.recipes import recipe, refuse_without_effect
from calibnorm.lab.training.folder import read_rows, waited
from lab.training.tiny import TINY, Interrupting, assert_same_run, row, run

# At a learning rate of almost 0 the accuracy stays what it was: the run ends after the first test and two more.
STILL = replace(TINY, epochs=6, learning_rate=1e-12, patience=2, norm="bn", schedule="step", ema=0.999)
TASK = tasks.of(STILL)


@pytest.mark.parametrize(
    ("accuracies", "patience", "expected"),
    [
        ([50, 51, 52], 1, False),
        ([50, 52, 51], 1, True),
        ([50, 52, 51], 2, False),
        ([50, 52, 52, 51], 2, True),  # as good is not better
        ([50, float("nan"), 49], 1, True),
        ([50, float("nan"), 49], 2, False),  # an epoch without a test does not count
        ([50, 50, 50], None, False),
        ([], 1, False),
    ],
)
def test_when_it_is_at_its_end(accuracies: list[float], patience: int | None, expected: bool) -> None:
    rows = [row(at, 1.0, 50.0, *([each] * 3), 0.1) for at, each in enumerate(accuracies, 1)]
    assert waited(rows, TASK, patience) is expected


def test_a_run_ends_early_and_on_resumption_as_early(tmp_path: Path) -> None:
    result = run(STILL, tmp_path / "a")
    assert (result.epochs, result.best_epoch) == (3, 1)
    with pytest.raises(KeyboardInterrupt):
        run(STILL, tmp_path / "b", watcher=Interrupting(9), checkpoint_minutes=0)
    again = run(STILL, tmp_path / "b")
    assert again.epochs == 3
    assert_same_run(tmp_path / "b", tmp_path / "a")
    assert run(STILL, tmp_path / "b") == again  # finished: nothing is trained
    with pytest.raises(UsageError, match=r"the run in .* is finished"):
        run(replace(STILL, weight_decay=0.0), tmp_path / "b", override=["weight_decay"])
    longer = run(replace(STILL, patience=4), tmp_path / "b", override=["patience"])
    assert longer.epochs == len(read_rows(tmp_path / "b", tasks.of(STILL))) == 5


def test_a_patience_that_cannot_end_a_run_is_refused() -> None:
    default = recipe("digits-tiny")
    with pytest.raises(UsageError, match="patience=2: has no effect with 3 tests in all; give less, or more epochs"):
        refuse_without_effect([replace(default, patience=2)], default, {"patience"})
    refuse_without_effect([replace(default, patience=1)], default, {"patience"})
    with pytest.raises(UsageError, match="patience=0: must be at least 1"):
        replace(default, patience=0)
