"""Many runs in a few processes of one thread each.

Two processes of one thread train small networks about a third faster than one process of two threads, and give the same
numbers however many of them there are. Several commands may work on one folder: each run has a lock.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType

import torch

from calibnorm.errors import Stopped
from calibnorm.lab.experiments.grid import Run
from calibnorm.lab.experiments.outcomes import Outcome, outcome
from calibnorm.lab.experiments.worker_process import Settings, train_one, work

POLL_S = 0.5
"""How often progress is told where nothing else happens."""
RETRY_S = 1.0
"""How often a run that another command trains is looked at."""
PATIENCE_S = 60
"""What a worker gets for its last checkpoint when it is told to end, before it is killed."""


class Worker:
    """A process that trains the runs it is sent, one after the other."""

    def __init__(self, settings: Settings, gpu: str | None) -> None:
        # "spawn" because a forked copy of a process that has used torch's threads may hang.
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        # No daemon: those may not have processes of their own, and folder data sets are read by some.
        self.process: SpawnProcess = context.Process(target=work, args=(theirs, settings, gpu))
        with ignored(signal.SIGINT):
            self.process.start()
        theirs.close()
        self.gpu = gpu
        self.run: Run | None = None

    def start(self, run: Run) -> None:
        """Send a run."""
        self.run = run
        with suppress(OSError):  # a process that is dead already is found so by its answer
            self.pipe.send(run)

    def answer(self) -> Outcome | None:
        """Return how the run ended, or None where it is still going on."""
        try:
            if self.pipe.poll():
                answer: Outcome = self.pipe.recv()
                return answer
        except (EOFError, OSError):
            self.process.join()
        if self.process.is_alive():
            return None
        code = self.process.exitcode or 0
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"
        why = ", perhaps for want of memory" if code == -signal.SIGKILL else ""
        return Outcome("failed", message=f"its process ended with {how}{why}")

    def end(self) -> None:
        """Let an idle process end, and one that trains write its checkpoint first."""
        self.pipe.close()
        if self.run is not None and self.process.is_alive():
            self.process.terminate()


def train_all(
    runs: Sequence[Run],
    jobs: int,
    settings: Settings,
    on_progress: Callable[[], object] = lambda: None,
    failed: dict[Path, Outcome] | None = None,
) -> dict[Path, Outcome]:
    """Train every run that is neither finished nor known to diverge, in the order given.

    A run that another command trains is left to it, and taken over if that command ends without finishing it.

    Args:
        runs: What to train.
        jobs: Processes; 0 trains in this one.
        settings: For all of them.
        on_progress: Called about twice a second; without processes, after each run.
        failed: Takes up the runs that fail, for a caller that wants them though it interrupts.

    Returns:
        How the runs that failed did, by folder.

    Raises:
        Stopped: By SIGTERM, or in this process by Ctrl-C too; checkpoints are written.
    """
    todo = [run for run in runs if outcome(run).state == "missing"]
    failed = {} if failed is None else failed
    with sigterm_raises():
        if jobs == 0:
            train_here(todo, settings, on_progress, failed)
        else:
            train_in_workers(todo, jobs, settings, on_progress, failed)
    on_progress()
    return failed


def train_in_workers(
    todo: list[Run],
    jobs: int,
    settings: Settings,
    on_progress: Callable[[], object],
    failed: dict[Path, Outcome],
) -> None:
    """Train in so many processes, which are ended whatever ends this."""
    tried: dict[Path, float] = {}  # when a run was last found in another command's hands
    gpus = visible_gpus(settings.accelerator)
    workers: list[Worker] = []
    jobs = min(jobs, len(todo))
    settings = replace(settings, sharing=max(1, jobs))
    try:
        workers += [Worker(settings, gpus[i % len(gpus)]) for i in range(jobs)]
        while todo or any(worker.run for worker in workers):
            for number, worker in enumerate(workers):
                if worker.run is None:
                    run = next_run(todo, tried)
                    if run is not None:
                        worker.start(run)
                elif (answer := worker.answer()) is not None:
                    note(worker.run, answer, todo, tried, failed)
                    worker.run = None
                    if todo and not worker.process.is_alive():
                        worker.pipe.close()
                        workers[number] = Worker(settings, worker.gpu)
            on_progress()
            training = [worker for worker in workers if worker.run]
            wait([*(w.pipe for w in training), *(w.process.sentinel for w in training)], timeout=POLL_S)
    finally:
        stop(workers)


def train_here(
    todo: list[Run], settings: Settings, on_progress: Callable[[], object], failed: dict[Path, Outcome]
) -> None:
    """Train in this process, one run after the other: for a debugger, and where no process shall be started."""
    tried: dict[Path, float] = {}
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        while todo:
            run = next_run(todo, tried)
            if run is None:
                time.sleep(POLL_S)
            else:
                note(run, train_one(run, settings), todo, tried, failed)
            on_progress()
    finally:
        torch.set_num_threads(before)


def note(run: Run, answer: Outcome, todo: list[Run], tried: dict[Path, float], failed: dict[Path, Outcome]) -> None:
    """Put a run where it belongs after an answer: one in another command's hands is to be tried again."""
    if answer.state == "busy":
        tried[run.folder] = time.monotonic()
        todo.append(run)
    elif not answer.finished:
        failed[run.folder] = answer


def next_run(todo: list[Run], tried: dict[Path, float]) -> Run | None:
    """Take the next run out of ``todo``; None where others train all that is left, and were asked just now.

    Those that others train come last. Those that others have finished in the meantime are taken out too.
    """
    for run in sorted(todo, key=lambda run: tried.get(run.folder, 0.0)):
        if run.folder in tried and time.monotonic() - tried[run.folder] < RETRY_S:
            return None
        todo.remove(run)
        if outcome(run).state == "missing":
            return run
    return None


def stop(workers: Sequence[Worker]) -> None:
    """End all processes; those that do not write their checkpoint in time are killed."""
    try:
        for worker in workers:
            worker.end()
        deadline = time.monotonic() + PATIENCE_S
        for worker in workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
    finally:  # a second Ctrl-C comes here at once
        for worker in workers:
            if worker.process.is_alive():
                worker.process.kill()
            worker.process.join()


def visible_gpus(accelerator: str) -> list[str | None]:
    """Return the GPUs that workers take turns with, as CUDA_VISIBLE_DEVICES names them; [None] to leave that alone."""
    count = 0 if accelerator == "cpu" else torch.cuda.device_count()
    if count < 2:
        return [None]
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [*named.split(",")[:count]] if named else [str(i) for i in range(count)]


@contextmanager
def ignored(number: signal.Signals) -> Iterator[None]:
    """Ignore a signal in a block, and for good in the processes that it starts: their parent tells them to stop."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Turn SIGTERM into Stopped in a block, so that it ends the workers too."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise Stopped(number, "stopped")

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
