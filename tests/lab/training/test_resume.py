"""A run that is killed and started again comes to what an undisturbed one comes to, bit for bit."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lab.training import children
from lab.training.tiny import EPOCHS, RICH, STEPS, TINY, Interrupting, assert_same_run, run

pytestmark = pytest.mark.untraced

OFTEN, SELDOM = 0.0, 10.0
"""Minutes between checkpoints inside an epoch: one after each step, and none in so short a run."""


def die(folder: Path, minutes: float, moment: str, number: int) -> None:
    status = children.run(children.train_and_die, RICH, folder, minutes, moment, number)
    assert status == -signal.SIGKILL


@pytest.mark.parametrize(
    ("minutes", "step"),
    [
        (SELDOM, 2),  # nothing was saved
        (SELDOM, STEPS + 2),  # one epoch was saved
        (OFTEN, 3),  # in the middle of the first epoch
        (OFTEN, STEPS),  # after its last step, before its test
        (OFTEN, STEPS + 2),
    ],
)
def test_killed_after_a_step(minutes: float, step: int, tmp_path: Path, undisturbed: Path) -> None:
    die(tmp_path / "run", minutes, "step", step)
    assert not (tmp_path / "run" / "result.json").exists()
    run(RICH, tmp_path / "run")
    assert_same_run(tmp_path / "run", undisturbed)


@pytest.mark.parametrize("moment", ["half written", "before rename", "after rename", "before removal", "fsync"])
def test_killed_while_a_checkpoint_is_written(moment: str, tmp_path: Path, undisturbed: Path) -> None:
    folder = tmp_path / "run"
    die(folder, OFTEN, moment, {"before removal": 3, "fsync": 8}.get(moment, 6))
    kept = list((folder / "checkpoints").glob("step-*.pt"))
    assert kept
    for path in kept:
        torch.load(path, weights_only=True)
    run(RICH, folder)
    assert_same_run(folder, undisturbed)
    assert not list((folder / "checkpoints").glob(".step-*")), "what was half written is cleared away"


def test_killed_again_and_again(tmp_path: Path, undisturbed: Path) -> None:
    for _ in range(2):
        die(tmp_path / "run", OFTEN, "step", 3)
    run(RICH, tmp_path / "run")
    assert_same_run(tmp_path / "run", undisturbed)


@pytest.mark.parametrize("precision", ["bfloat16"])
def test_other_arithmetic_resumes_exactly(precision: str, tmp_path: Path) -> None:
    recipe = replace(TINY, precision=precision, channels_last=True)
    run(recipe, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "run", checkpoint_minutes=OFTEN, watcher=Interrupting(STEPS + 1))
    run(recipe, tmp_path / "run")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.nightly
def test_killed_at_twenty_moments(tmp_path: Path, undisturbed: Path) -> None:
    moments = [(m, n) for m in ("step", "half written", "before rename", "after rename", "fsync") for n in (1, 2, 5, 7)]
    for moment, number in moments:
        folder = tmp_path / f"{moment} {number}"
        die(folder, OFTEN, moment, min(number, EPOCHS * STEPS))
        run(RICH, folder)
        assert_same_run(folder, undisturbed)
