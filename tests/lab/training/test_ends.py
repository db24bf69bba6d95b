"""How a run and its command end before their time, inside the test's own process."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from calibnorm.errors import RunFailed, Stopped, UsageError
from calibnorm.lab import cli, models, tasks
from calibnorm.lab.training import folder as folders
from calibnorm.lab.training import machine, processes
from calibnorm.lab.training import run as runs
from calibnorm.lab.training.learner import synchronizable
from calibnorm.lab.training.machine import Accelerator
from calibnorm.nn import CalibratedNorm
from lab.training.tiny import RICH, STEPS, TINY, arguments, assert_same_run, run, state


class After:
    """Returns a signal's number from the n-th time on that it is asked."""

    def __init__(self, count: int) -> None:
        self.left = count

    def __call__(self) -> int:
        self.left -= 1
        return signal.SIGTERM if self.left < 0 else 0


@pytest.mark.parametrize(("asked", "step"), [(STEPS + 1, STEPS + 2), (STEPS + 3, STEPS)])
def test_a_run_asked_to_stop_saves_and_goes_on(asked: int, step: int, tmp_path: Path, undisturbed: Path) -> None:
    # Asked after each step and, in tests, after each of the ten batches.
    stop = After(asked if step == STEPS else asked + 10)
    epoch = 1 if step == STEPS else 2
    with pytest.raises(Stopped, match=f"stopped in epoch {epoch} after {step - (epoch - 1) * STEPS} steps") as caught:
        run(RICH, tmp_path / "run", stop=stop)
    assert caught.value.number == signal.SIGTERM
    assert state(tmp_path / "run")["progress"]["step"] == step
    run(RICH, tmp_path / "run")
    assert_same_run(tmp_path / "run", undisturbed)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (RunFailed("the disk is full"), 1, "calibnorm: the disk is full\n"),
        (Stopped(15, "stopped"), 143, "calibnorm: stopped; the same command goes on from there ({out})\n"),
        (Stopped(2, "stopped"), 130, "calibnorm: stopped; the same command goes on from there ({out})\n"),
        (UsageError("no such thing"), 2, "calibnorm: no such thing\n"),
        (
            KeyboardInterrupt(),
            130,
            "\ncalibnorm: stopped by Ctrl-C; the same command goes on from the last checkpoint ({out})\n",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_command_says_it_in_a_line(
    error: BaseException,
    status: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(runs, "train", fails)
    out = tmp_path / "run"
    assert cli.main(arguments(TINY, out)) == status
    assert capsys.readouterr().err == said.format(out=out)
    if not isinstance(error, KeyboardInterrupt):
        monkeypatch.setenv("RANK", "1")  # the second process of torchrun
        assert cli.main(arguments(TINY, out)) == status
        own = "" if isinstance(error, Stopped) else f"calibnorm: process 1: {error}\n"
        assert capsys.readouterr().err == own
        if own:
            error.shared = True  # type: ignore[attr-defined]
            assert cli.main(arguments(TINY, out)) == status
            assert capsys.readouterr().err == ""


def test_torchrun_says_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "GROUP_RANK"):
        monkeypatch.setenv(name, "0")
    for name, value in (("WORLD_SIZE", "8"), ("LOCAL_WORLD_SIZE", "4"), ("TORCHELASTIC_RUN_ID", "x")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes.TorchElasticEnvironment, "detect", staticmethod(lambda: True))
    assert processes._counts(processes.Machine()) == (4, 2)
    assert processes._counts(processes.Machine(devices=4, num_nodes=2)) == (4, 2)
    with pytest.raises(UsageError, match="num_nodes=3: torchrun started 2"):
        processes._counts(processes.Machine(num_nodes=3))


def test_only_plain_layers_are_made_ours_to_be_synchronized() -> None:
    network = models.build("resnet11", num_classes=10, norm="iebn")
    calibrated = {name: type(module) for name, module in network.named_modules() if isinstance(module, CalibratedNorm)}
    synchronizable(network)
    after = {name: type(module) for name, module in network.named_modules() if isinstance(module, CalibratedNorm)}
    assert {name: after[name] for name in calibrated} == calibrated
    plain = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(plain) == len(after) > len(calibrated)
    names = list(network.state_dict())
    synchronizable(network)
    assert list(network.state_dict()) == names


@pytest.mark.parametrize("network", [nn.Flatten(), nn.Sequential(nn.Flatten(), nn.Linear(64, 7))])
def test_scores_of_other_classes_are_refused(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not list(network.parameters()):
        network.register_parameter("unused", nn.Parameter(torch.zeros(1)))
    monkeypatch.setattr(runs, "initial_network", lambda *args: network)
    with pytest.raises(UsageError, match="model=resnet11: gives no scores of 10 classes for digits"):
        run(TINY, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"folder=.*/file: is a file; name a folder"):
        run(TINY, tmp_path / "file" / "run")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text('{"model": "resn')
    with pytest.raises(UsageError, match=r"config.json: is damaged"):
        run(TINY, damaged)
    (damaged / "config.json").write_text('{"model": "resnet11", "data": "digits", "epochs": 1, "speed": 3}')
    with pytest.raises(UsageError, match="speed is no setting of a recipe"):
        run(TINY, damaged)


def test_a_disk_without_locks_is_used_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*args: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with folders.locked(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()


def test_mixing_needs_sets_in_memory() -> None:
    with pytest.raises(UsageError, match="mix=mnist: sets in memory can be mixed"):
        tasks.of(replace(TINY, data="imagenet", mix="mnist")).check()


@pytest.mark.parametrize(
    ("change", "accelerator", "named"),
    [
        ({}, "cuda", "accelerator=cuda"),
        ({"precision": "float16"}, "auto", "precision=float16"),
        ({"compile": True}, "cpu", "compile: torch.compile does not work here: no compiler$"),
    ],
)
def test_what_a_machine_cannot_do_is_refused_without_lightning(
    change: dict[str, Any], accelerator: Accelerator, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiled(*args: object) -> None:
        raise RuntimeError("no compiler\nand much more")

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.compile", lambda function: compiled)
    machine.check_machine(TINY, "cpu")
    with pytest.raises(UsageError, match=named):
        machine.check_machine(replace(TINY, **change), accelerator)
