"""What a run is started with: processes, arithmetic, compiler, and processes that read pictures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from calibnorm.errors import RunFailed, UsageError
from calibnorm.lab import tasks
from calibnorm.lab.data.workers import readers
from calibnorm.lab.experiments import worker_process, workers
from calibnorm.lab.experiments.grid import Run
from calibnorm.lab.tasks.classify import Classify
from calibnorm.lab.training import companions, machine, processes
from calibnorm.lab.training import run as runs
from calibnorm.lab.training.interruption import Interruption
from calibnorm.lab.training.learner import Learner
from lab.training.tiny import STEPS, TINY, arguments, run

CUDA = torch.device("cuda")


class FakeFabric:
    """Takes what Fabric takes, and starts nothing."""

    world = 2

    def __init__(self, **options: Any) -> None:
        FakeFabric.options = options
        self.world_size, self.global_rank = FakeFabric.world, 1

    def launch(self) -> None:
        pass


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Return a batch script's environment: one task, as Slurm counts where no number of tasks was asked for."""
    monkeypatch.setattr(processes, "Fabric", FakeFabric)
    monkeypatch.setattr(companions, "start", lambda count, address, port: monkeypatch.setenv("STARTED", str(count)))
    monkeypatch.setenv("STARTED", "")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(processes.TorchElasticEnvironment, "detect", staticmethod(lambda: False))
    for name in ("RANK", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS_PER_NODE", "SLURM_NNODES", "SLURM_JOB_NAME"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    return monkeypatch


def start(devices: int | None, nodes: int | None = None) -> Any:
    processes.start(processes.Machine("cpu", devices, nodes), "float32")
    return FakeFabric.options["plugins"][0]


def test_processes_are_started_in_a_slurm_batch_job(slurm: pytest.MonkeyPatch) -> None:
    assert type(start(2)) is LightningEnvironment
    assert os.environ["STARTED"] == "2"
    slurm.setenv("SLURM_NTASKS", "2")  # asked for, but srun was not called
    assert type(start(2)) is LightningEnvironment
    slurm.setattr(FakeFabric, "world", 1)
    slurm.setenv("SLURM_STEP_NUM_TASKS", "4")  # four runs side by side
    assert type(start(None)) is LightningEnvironment
    assert "RANK" not in os.environ


def test_processes_of_srun_are_taken(slurm: pytest.MonkeyPatch) -> None:
    for name, value in (("SLURM_NTASKS", "2"), ("SLURM_STEP_NUM_TASKS", "2"), ("SLURM_NTASKS_PER_NODE", "2")):
        slurm.setenv(name, value)
    assert type(start(2)) is SLURMEnvironment
    assert os.environ["RANK"] == "1", "the command asks there whether this process speaks"
    assert type(start(1, nodes=2)) is SLURMEnvironment
    assert os.environ["STARTED"] == ""
    with pytest.raises(UsageError, match="devices=3: srun started 2 processes; 3 are wanted, or 1"):
        start(3)
    slurm.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(UsageError, match=r"devices=2: .*ntasks"):
        start(2)


def test_fewer_processes_than_were_asked_for_do_not_train(slurm: pytest.MonkeyPatch) -> None:
    slurm.setattr(FakeFabric, "world", 1)
    with pytest.raises(UsageError, match="devices=2: 1 processes train, not 2"):
        start(2)
    with pytest.raises(UsageError, match="num_nodes=2: start the command with torchrun on every machine"):
        start(1, nodes=2)


@pytest.mark.nightly
def test_devices_train_in_a_slurm_batch_job(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    command = [sys.executable, "-m", "calibnorm", *arguments(replace(TINY, epochs=1), tmp_path / "run")]
    subprocess.run([*command, "--devices", "2"], check=True, env=environment, timeout=240)
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["processes"] == 2


def test_convolutions_are_in_float32_unless_tf32_is_asked_for() -> None:
    cudnn = torch.backends.cudnn
    with torch.backends.__allow_nonbracketed_mutation():  # torch's own test harness, in this process, freezes the flags
        for start in (True, False):
            cudnn.allow_tf32 = start
            before = cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision
            for precision, name in (("float32", "ieee"), ("bfloat16", "ieee"), ("tf32", "tf32")):
                with machine.convolutions(CUDA, precision):  # type: ignore[arg-type]
                    assert machine.float32_convolutions(CUDA) == name
                    assert cudnn.allow_tf32 == (name == "tf32"), "what torch.compile reads is told, too"
                assert (cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision) == before
                assert cudnn.allow_tf32 == start
        cudnn.allow_tf32 = True  # torch's default


def test_a_run_sets_its_convolutions_and_notes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside: list[object] = []
    told: list[object] = []

    @contextmanager
    def told_convolutions(*args: object) -> Iterator[None]:
        told.extend(args)
        inside.append(None)
        yield
        inside.pop()

    step = Learner.step

    def stepped(self: Learner, *args: Any) -> Any:
        told.append(len(inside))
        return step(self, *args)

    monkeypatch.setattr(runs, "convolutions", told_convolutions)
    monkeypatch.setattr(runs, "float32_convolutions", lambda device: f"of {device}")
    monkeypatch.setattr(Learner, "step", stepped)
    run(replace(TINY, epochs=1), tmp_path / "run")
    assert told == [torch.device("cpu"), "float32", *[1] * STEPS]
    assert not inside
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["convolutions"] == "of cpu"


def test_tf32_needs_a_gpu_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_tf32_supported", lambda: False)
    for kind in ("cpu", "cuda"):
        with pytest.raises(UsageError, match="precision=tf32: needs a GPU with such arithmetic"):
            machine.check_precision(kind, "tf32")  # type: ignore[arg-type]
    monkeypatch.setattr("torch.cuda.is_tf32_supported", lambda: True)
    machine.check_precision("cuda", "tf32")
    assert "tf32" not in processes.MIXED


def test_the_compiler_is_tried_on_the_device_that_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.ones", lambda count, device="cpu": torch.device(device))
    monkeypatch.setattr("torch.compile", lambda function: seen.append)
    recipe = replace(TINY, compile=True)
    machine.check_machine(recipe, "cpu")
    machine.check_machine(recipe, "auto")
    monkeypatch.setenv("LOCAL_RANK", "1")
    machine.check_machine(recipe, "cuda")
    assert seen == [torch.device("cpu"), torch.device("cuda", 0), torch.device("cuda", 1)]


def test_processes_that_read_pictures_are_divided_among_those_that_train(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(16)))
    assert [readers(sharing) for sharing in (1, 2, 8, 64)] == [8, 8, 2, 1]
    strategy = runs.Fabric(accelerator="cpu", devices=4, strategy="ddp", plugins=[LightningEnvironment()]).strategy
    alone = runs.Fabric(accelerator="cpu", devices=1).strategy
    got = []
    monkeypatch.setattr(Classify, "feeds", lambda task, root, place, workers: got.append(workers))
    for each in (strategy, alone):
        fabric: Any = SimpleNamespace(strategy=each, device=torch.device("cpu"), global_rank=0, world_size=4)
        runs.load(tasks.of(TINY), Path(), fabric)
        runs.load(tasks.of(TINY), Path(), fabric, 5)
    assert got == [4, 5, 8, 5]


def test_runs_side_by_side_divide_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(6)))

    class Started(Exception):
        pass

    def started(settings: worker_process.Settings, gpu: str | None) -> None:
        raise Started(settings)

    def trained(*args: object, workers: int, **options: object) -> None:
        raise RunFailed(f"{workers} readers")

    monkeypatch.setattr(workers, "Worker", started)
    monkeypatch.setattr(runs, "train", trained)
    todo = [Run(TINY, tmp_path / f"seed{seed}") for seed in range(3)]
    settings = worker_process.Settings(tmp_path, "cpu")
    with pytest.raises(Started) as caught:
        workers.train_in_workers(workers.Queue(todo, {}), 8, settings, lambda: None, Interruption())
    answer = worker_process.trained(todo[0], caught.value.args[0], Interruption())
    assert answer.message == "2 readers"
