"""Devices and processes: what Fabric is started with, and what the processes of a run agree on."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from calibnorm.errors import ReasonedError, RunFailed, Setting, UsageError
from calibnorm.lab.recipes import Precision
from calibnorm.lab.training import companions
from calibnorm.lab.training.machine import (
    Accelerator,
    check_devices,
    check_precision,
    choose,
    started_by_srun,
    starts_others,
)

T = TypeVar("T")

MIXED: dict[str, Any] = {"bfloat16": ["bf16-mixed"], "float16": ["16-mixed"]}
"""Fabric's plugins for mixed precision, with float32 weights; the scaler of float16's gradients is Fabric's."""


@dataclass(frozen=True)
class Machine:
    """Where a run trains.

    Args:
        accelerator: "auto" is a GPU where there is one.
        devices: Processes on this machine, one a device; under torchrun what torchrun says, else 1 by default.
        num_nodes: Machines; under torchrun what torchrun says, else 1 by default; several need it or srun.
    """

    accelerator: Accelerator = "auto"
    devices: int | None = None
    num_nodes: int | None = None


def start(machine: Machine, precision: Precision) -> Fabric:
    """Return Fabric with its processes found, where torchrun or srun started them, or else started.

    Those that it starts run the same command line again, so only a command may ask for several.

    Raises:
        UsageError: There is no such device, there are fewer than asked for, they have not that precision, or other
            processes are there than were asked for.
    """
    kind = choose(machine.accelerator)
    check_precision(kind, precision)
    devices, nodes = _counts(machine)
    check_devices(devices, kind)
    with _quiet():
        environment = _environment(devices, nodes)
        fabric = Fabric(
            accelerator=kind,
            devices=devices,
            num_nodes=nodes,
            strategy="ddp" if devices * nodes > 1 else "auto",
            # Of the two lists Fabric takes one; left to itself, it finds a Slurm batch job, and starts nobody there.
            plugins=[environment, *(MixedPrecision(each, kind) for each in MIXED.get(precision, ()))],
        )
        if starts_others(devices):
            companions.start(devices, environment.main_address, environment.main_port)
        elif type(environment) is LightningEnvironment and devices > 1:
            companions.end_with_first()
        try:
            fabric.launch()
        except ValueError as error:  # Slurm's own numbers contradict ours
            raise UsageError(Setting("devices", devices), f"{str(error).splitlines()[0]}") from error
    if isinstance(environment, SLURMEnvironment):  # the command asks there who shall speak
        os.environ.setdefault("RANK", str(fabric.global_rank))
    if fabric.world_size != devices * nodes:
        raise UsageError(Setting("devices", devices), f"{fabric.world_size} processes train, not {devices * nodes}")
    return fabric


@contextmanager
def _quiet() -> Iterator[None]:
    """Let Lightning say no more than its warnings: every process would introduce itself."""
    # Fabric speaks through the logger of lightning.pytorch where that is imported, and `import lightning` does it.
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("fabric", "pytorch")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _environment(devices: int, nodes: int) -> ClusterEnvironment:
    """Return what started the processes; with Lightning's own, Fabric starts them."""
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if devices * nodes > 1 and started_by_srun() > 1:
        try:
            return SLURMEnvironment()
        except RuntimeError as error:  # without --ntasks-per-node
            raise UsageError(Setting("devices", devices), f"{str(error).splitlines()[0]}") from error
    return LightningEnvironment()


def _counts(machine: Machine) -> tuple[int, int]:
    for name, value in (("devices", machine.devices), ("num_nodes", machine.num_nodes)):
        if value is not None and value < 1:
            raise UsageError(Setting(name, value), "must be at least 1")
    if not TorchElasticEnvironment.detect():
        devices, nodes, tasks = machine.devices or 1, machine.num_nodes or 1, started_by_srun()
        if devices * nodes > 1 and tasks not in (1, devices * nodes):
            reason = f"srun started {tasks} processes; {devices * nodes} are wanted, or 1"
            raise UsageError(Setting("devices", devices), reason)
        if nodes > 1 and tasks == 1:
            raise UsageError(Setting("num_nodes", nodes), "start the command with torchrun on every machine")
        return devices, nodes
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    nodes = int(os.environ["WORLD_SIZE"]) // local
    for name, value, told in (("devices", machine.devices, local), ("num_nodes", machine.num_nodes, nodes)):
        if value is not None and value != told:
            raise UsageError(Setting(name, value), f"torchrun started {told}; leave the option away")
    return local, nodes


def on_first(fabric: Fabric, work: Callable[[], T]) -> T:
    """Return what ``work`` returns in process 0, in all; an error of it is raised in all of them.

    Only process 0 touches a run's folder: the machines need not share a disk.
    """
    value, error = _tried(work, UsageError, RunFailed) if fabric.is_global_zero else (None, None)
    if fabric.world_size > 1:
        value, error = fabric.broadcast((value, error))
    return _agreed(value, error)


def on_all(fabric: Fabric, work: Callable[[], T]) -> T:
    """Return what ``work`` returns in this process; the error of any process is raised in all of them.

    Otherwise the others would wait, for as long as half an hour, for a process that is gone.
    """
    value, error = _tried(work, UsageError)
    if fabric.world_size > 1:
        errors = enumerate(Processes(fabric.world_size).gather(error))
        number, error = next(((n, e) for n, e in errors if e is not None), (0, None))
        if error is not None and number > 0:
            error = error.after(f"process {number}: ")
    return _agreed(value, error)


def _tried(work: Callable[[], T], *kinds: type[ReasonedError]) -> tuple[T | None, ReasonedError | None]:
    try:
        return work(), None
    except kinds as error:
        return None, error


def _agreed(value: T | None, error: ReasonedError | None) -> T:
    if error is not None:
        error.shared = True
        raise error
    return value  # type: ignore[return-value]  # the work returned it


def largest(fabric: Fabric, *values: int) -> tuple[int, ...]:
    """Return the largest of every value over the processes, so that all of them do the same."""
    if fabric.world_size == 1:
        return values
    together = torch.tensor(values, dtype=torch.int64, device=fabric.device)
    dist.all_reduce(together, dist.ReduceOp.MAX)
    return tuple(together.tolist())


@dataclass(frozen=True)
class Processes:
    """What so many processes of a run know together; it is a task's `Together`."""

    count: int

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over the processes; the argument stays as it is."""
        if self.count > 1:
            values = values.clone()
            dist.all_reduce(values, dist.ReduceOp.SUM)
        return values

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, in their order."""
        values = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(values, value)
        return values
