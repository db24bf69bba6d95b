"""One run in a process: in a worker, told through a pipe what to train, or in the command's own process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch

from calibnorm import loading
from calibnorm.errors import NOT_GIVEN, Diverged, ReasonedError, RunFailed, Setting, Stopped, UsageError, as_option
from calibnorm.lab.experiments.grid import Run
from calibnorm.lab.experiments.outcomes import Outcome, outcome
from calibnorm.lab.locks import exclusive
from calibnorm.lab.training.interruption import Interruption
from calibnorm.lab.training.machine import Accelerator
from calibnorm.report.files import write_json
from calibnorm.report.streams import output_to

BUSY = Outcome("busy", message="another command trains it")


@dataclass(frozen=True)
class Settings:
    """What all workers need.

    Args:
        data_root: Where data sets lie.
        accelerator: "auto", "cpu" or "cuda".
        sharing: Workers on this machine, which divide its cores to read folder sets.
        load: Files and modules that register what the runs need: those that this process has loaded.
    """

    data_root: Path
    accelerator: Accelerator = "auto"
    sharing: int = 1
    load: tuple[str, ...] = field(default_factory=lambda: tuple(each.path for each in loading.loaded()))


def work(pipe: Connection, settings: Settings, gpu: str | None) -> None:
    """Train what comes through the pipe until it is closed."""
    torch.set_num_threads(1)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    threading.Thread(target=end_with_parent, daemon=True).start()
    loading.load(settings.load)
    while True:
        try:
            run = pipe.recv()
        except EOFError:
            return
        run.log.parent.mkdir(parents=True, exist_ok=True)
        with output_to(run.log):
            try:
                with Interruption() as stop:
                    answer = train_unless_busy(run, settings, stop)
            except Stopped as stopped:
                raise SystemExit(128 + stopped.number) from None
        pipe.send(answer)


def end_with_parent() -> None:
    """Wait for the parent's end, then end this process as the parent would have: with time for a checkpoint."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def train_unless_busy(run: Run, settings: Settings, stop: Interruption) -> Outcome:
    """Train a run, or finish it, unless another process does.

    Raises:
        Stopped: By a signal; its checkpoint is written.
    """
    with exclusive(run.lock) as ours:
        if not ours:
            return BUSY
        before = outcome(run)
        return trained(run, settings, stop) if before.state == "missing" else before


def trained(run: Run, settings: Settings, stop: Interruption) -> Outcome:
    """Train a run and return how it ended.

    Raises:
        Stopped: By a signal; its checkpoint is written.
    """
    # Lightning: seconds, which the first run of a process waits for.
    from calibnorm.lab.data.workers import readers
    from calibnorm.lab.training import train
    from calibnorm.lab.training.watchers import Lines, Watcher

    watcher = Lines() if multiprocessing.parent_process() else Watcher()
    stop.obey()
    try:
        train(
            run.recipe,
            run.folder,
            data_root=settings.data_root,
            accelerator=settings.accelerator,
            workers=readers(settings.sharing),
            watcher=watcher,
            stop=stop,
        )
    except Stopped as stopped:
        watcher.say(str(stopped))
        raise
    except Diverged as error:
        watcher.say(str(error))
        write_json(run.failure, {"state": "diverged", "message": str(error.parts[0])})
    except (RunFailed, UsageError) as error:
        watcher.say(said := in_options(error))
        return Outcome("failed", message=said)
    except Exception as error:
        watcher.say(traceback.format_exc())
        return Outcome("failed", message=f"{type(error).__name__}: {error}".splitlines()[0])
    return outcome(run)


def in_options(error: ReasonedError) -> str:
    """Return the words of an error for whoever typed options; a run's folder is none of them.

    >>> in_options(UsageError(Setting("batch_size", 0), "is too small for ", Setting("folder", "runs/a")))
    '--batch-size 0: is too small for runs/a'
    """

    def write(setting: Setting) -> str:
        if setting.name != "folder":
            return as_option(setting)
        return setting.name if setting.value is NOT_GIVEN else str(setting.value)

    return error.words(write)
