"""Many runs in a few processes of one thread each.

Two processes of one thread train small networks about a third faster than one process of two threads, and give the same
numbers however many of them there are. Several commands may work on one folder: each run has a lock.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType

import torch

from calibnorm.lab.experiments.grid import Run
from calibnorm.lab.experiments.locks import exclusive
from calibnorm.lab.experiments.outcomes import Outcome, outcome

POLL_S = 0.5
"""How often progress is told where nothing else happens."""
RETRY_S = 1.0
"""How often a run that another command trains is looked at."""
PATIENCE_S = 60
"""What a worker gets for its last checkpoint when it is told to end, before it is killed."""
BUSY = Outcome("missing", message="another process trains it")


@dataclass(frozen=True)
class Settings:
    """What all workers need.

    Args:
        data_root: Where data sets lie.
        accelerator: "auto", "cpu" or "cuda".
    """

    data_root: Path
    accelerator: str = "auto"


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
        return Outcome("failed", message=f"its process ended with {how}, perhaps for want of memory")

    def end(self) -> None:
        """Let an idle process end, and one that trains write its checkpoint first."""
        self.pipe.close()
        if self.run is not None and self.process.is_alive():
            self.process.terminate()


def train_all(
    runs: Sequence[Run], jobs: int, settings: Settings, on_progress: Callable[[], object] = lambda: None
) -> dict[Path, Outcome]:
    """Train every run that is neither finished nor known to diverge, in the order given.

    A run that another command trains is left to it, and taken over if that command ends without finishing it.

    Args:
        runs: What to train.
        jobs: Processes.
        settings: For all of them.
        on_progress: Called about twice a second.

    Returns:
        How the runs that failed did, by folder.
    """
    todo = [run for run in runs if outcome(run).state == "missing"]
    tried: dict[Path, float] = {}  # when a run was last found in another command's hands
    failed: dict[Path, Outcome] = {}
    gpus = visible_gpus(settings.accelerator)
    workers: list[Worker] = []
    with sigterm_raises():
        try:
            workers += [Worker(settings, gpus[i % len(gpus)]) for i in range(min(jobs, len(todo)))]
            while todo or any(worker.run for worker in workers):
                for number, worker in enumerate(workers):
                    if worker.run is None:
                        run = next_run(todo, tried)
                        if run is not None:
                            worker.start(run)
                    elif (answer := worker.answer()) is not None:
                        if answer == BUSY:
                            tried[worker.run.folder] = time.monotonic()
                            todo.append(worker.run)
                        elif not answer.finished:
                            failed[worker.run.folder] = answer
                        worker.run = None
                        if not worker.process.is_alive():
                            worker.pipe.close()
                            workers[number] = Worker(settings, worker.gpu)
                on_progress()
                training = [worker for worker in workers if worker.run]
                wait([*(w.pipe for w in training), *(w.process.sentinel for w in training)], timeout=POLL_S)
        finally:
            stop(workers)
    on_progress()
    return failed


def next_run(todo: list[Run], tried: dict[Path, float]) -> Run | None:
    """Take the next run out of ``todo``; None where others train all that is left, and were asked just now.

    Runs that others have finished in the meantime are taken out too.
    """
    for run in list(todo):
        if time.monotonic() - tried.get(run.folder, -RETRY_S) < RETRY_S:
            continue
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
    """Turn SIGTERM into SystemExit in a block, so that it ends the workers too."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# In a worker process.


def work(pipe: Connection, settings: Settings, gpu: str | None) -> None:
    """Train what comes through the pipe until it is closed."""
    torch.set_num_threads(1)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    threading.Thread(target=end_with_parent, daemon=True).start()
    while True:
        try:
            run = pipe.recv()
        except EOFError:
            return
        pipe.send(train_one(run, settings))


def end_with_parent() -> None:
    """Wait for the parent's end, then end this process as the parent would have: with time for a checkpoint."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def train_one(run: Run, settings: Settings) -> Outcome:
    """Train a run, or finish it, unless another process does."""
    with exclusive(run.lock) as ours:
        if not ours:
            return BUSY
        if (before := outcome(run)).state != "missing":
            return before
        with output_to(run.log):
            try:
                from calibnorm.lab import training  # Lightning: seconds

                training.train(run.recipe, run.folder, data_root=settings.data_root, accelerator=settings.accelerator)
            except Exception as error:
                traceback.print_exc()
                return Outcome("failed", message=f"{type(error).__name__}: {error}".splitlines()[0])
        return outcome(run)


@contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Append what the process writes in a block to a file, also what is written below Python."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    with path.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, handle in enumerate(kept, start=1):
                os.dup2(handle, number)
                os.close(handle)
