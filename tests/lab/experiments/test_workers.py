"""Runs in worker processes: killed, interrupted, resumed, and left to other commands. Real trainings of seconds."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from calibnorm.lab.experiments import workers
from calibnorm.lab.experiments.experiment import complaints
from calibnorm.lab.experiments.grid import Cell, Grid, Run
from calibnorm.lab.experiments.outcomes import Outcome, curve, epochs_done, outcome, outcomes
from calibnorm.lab.experiments.worker_process import Settings
from calibnorm.lab.experiments.workers import train_all, visible_gpus
from calibnorm.lab.locks import exclusive
from calibnorm.lab.recipes import Classification

TINY = Classification(model="resnet11", data="digits", epochs=1, train_images=64, batch_size=32, schedule="cosine")
LONG = replace(TINY, epochs=40, test_every=40)
"""Of seconds: it is interrupted when its first epoch is seen, also by a process that had to wait for the CPU."""
ENDLESS = replace(LONG, epochs=10_000, test_every=10_000)


@pytest.mark.usefixtures("forked_workers")
def test_a_killed_worker_fails_alone_and_ctrl_c_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for pause in ("POLL_S", "RETRY_S"):
        monkeypatch.setattr(workers, pause, 0.02)  # the runs take seconds
    settings = Settings(tmp_path / "data", "cpu")
    taken, killed = Run(LONG, tmp_path / "taken/seed0"), Run(ENDLESS, tmp_path / "killed/seed0")
    after = Run(TINY, tmp_path / "after/seed0")
    other_command = ExitStack()
    assert other_command.enter_context(exclusive(taken.lock))
    victims: list[int] = []

    def watch() -> None:
        if not victims and curve(killed):
            (child,) = multiprocessing.active_children()
            victims.append(child.pid or 0)
            os.kill(victims[0], signal.SIGKILL)
        elif outcome(after).finished and not curve(taken):
            other_command.close()
        elif curve(taken):
            raise KeyboardInterrupt

    failed: dict[Path, Outcome] = {}
    with pytest.raises(KeyboardInterrupt):
        train_all([taken, killed, after], 1, settings, watch, failed)
    assert multiprocessing.active_children() == []

    # The run whose process was killed is told of by the signal; another process trained what came after it.
    assert list(failed) == [killed.folder]
    assert failed[killed.folder].state == "failed"
    assert "SIGKILL" in failed[killed.folder].message
    assert outcome(killed).state == "missing"
    assert outcome(after).finished
    # The run that "another command" had came first, was left to it, and was trained when it let go.
    assert (taken.folder / "config.json").stat().st_mtime_ns > (after.folder / "result.json").stat().st_mtime_ns
    # Ctrl-C: it has a checkpoint of where it was, and its process said so.
    assert outcome(taken).state == "missing"
    assert list((taken.folder / "checkpoints").iterdir())
    assert "stopped in epoch" in taken.log.read_text(encoding="utf-8")
    assert "epoch" in killed.log.read_text(encoding="utf-8")

    # It goes on from there.
    before = curve(taken)
    assert epochs_done([taken, killed, after]) == len(before) + len(curve(killed)) + 1
    train_all([taken, after], 0, settings)
    assert outcome(taken).finished
    assert len(curve(taken)) == LONG.epochs
    assert [e["train_loss"] for e in curve(taken)[: len(before)]] == [e["train_loss"] for e in before]


def test_a_run_that_diverges_is_not_tried_again(tmp_path: Path) -> None:
    settings = Settings(tmp_path / "data", "cpu")
    run = Run(replace(TINY, learning_rate=1e30), tmp_path / "seed0")
    failed = train_all([run], 0, settings)
    assert failed[run.folder].state == outcome(run).state == "diverged"
    assert "NaN or infinite at step 2 (epoch 1)" in outcome(run).message
    assert epochs_done([run]) == 1
    assert train_all([run], 0, settings) == {}
    run.failure.unlink()
    assert outcome(run).state == "missing"


def test_an_error_is_told_in_a_line(tmp_path: Path) -> None:
    run = Run(replace(TINY, data="cifar10"), tmp_path / "seed0")
    failed = train_all([run], 0, Settings(tmp_path / "data", "cpu"))[run.folder]
    assert failed.state == "failed"
    assert failed.message.startswith("CIFAR-10 is missing: ")
    other = Run(TINY, tmp_path / "seed1")
    other.folder.mkdir()
    (other.folder / "config.json").write_text(json.dumps(replace(TINY, epochs=7).to_dict()))
    (other.folder / "last.pt").touch()
    failed = train_all([other], 0, Settings(tmp_path / "data", "cpu"))[other.folder]
    assert "holds a run with epochs 7, not 1" in failed.message


def test_a_run_of_another_command_is_waited_for_without_processes_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pause in ("POLL_S", "RETRY_S"):
        monkeypatch.setattr(workers, pause, 0.01)
    run = Run(TINY, tmp_path / "seed0")
    looks: list[int] = []
    with ExitStack() as other_command:
        assert other_command.enter_context(exclusive(run.lock))

        def watch() -> None:
            looks.append(0)
            if len(looks) == 5:
                other_command.close()

        assert train_all([run], 0, Settings(tmp_path / "data", "cpu"), watch) == {}
    assert len(looks) >= 6
    assert outcome(run).finished


def test_a_run_without_a_result_is_complained_of(tmp_path: Path) -> None:
    grid = Grid(tmp_path, [Cell("clean", "bn", TINY, Path("bn"))], range(2))
    (tmp_path / "bn/seed0").mkdir(parents=True)
    (tmp_path / "bn/seed0/result.json").write_text(
        json.dumps(dict.fromkeys(("test_accuracy", "best_epoch", "parameters", "epochs", "seconds"), 1.0))
    )
    assert complaints(grid, outcomes(grid.runs(), {})) == ["bn/seed1 missing: it has no result"]
    busy = {tmp_path / "bn/seed1": Outcome("busy", message="another command trains it")}
    assert complaints(grid, outcomes(grid.runs(), busy)) == ["bn/seed1 busy: another command trains it"]


@pytest.mark.parametrize("content", ["[]", "{", '{"test_accuracy": 90.0}'])
def test_a_damaged_result_is_named(content: str, tmp_path: Path) -> None:
    run = Run(TINY, tmp_path / "seed0")
    run.folder.mkdir()
    (run.folder / "config.json").write_text(json.dumps(TINY.to_dict()))
    (run.folder / "result.json").write_text(content)
    assert outcome(run).state == "missing"
    failed = train_all([run], 0, Settings(tmp_path / "data", "cpu"))
    assert "result.json: is damaged" in failed[run.folder].message


def test_gpus_are_shared_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus("auto") == ["0", "1"]
    assert visible_gpus("cpu") == [None]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert visible_gpus("cuda") == ["3", "5"]
