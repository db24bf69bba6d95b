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

import torch

from calibnorm.lab.experiments.grid import Run
from calibnorm.lab.experiments.outcomes import Outcome, outcome
from calibnorm.lab.experiments.worker_process import Settings, train_unless_busy, work
from calibnorm.lab.training.companions import how_ended
from calibnorm.lab.training.interruption import Interruption

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
        with kept_from_children(signal.SIGINT):
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
        return Outcome("failed", message=f"its process ended with {how_ended(self.process.exitcode or 0)}")

    def end(self) -> None:
        """Let an idle process end, and one that trains write its checkpoint first."""
        self.pipe.close()
        if self.run is not None and self.process.is_alive():
            self.process.terminate()


class Queue:
    """The runs that are still to be trained, in order; those that another command trains come last.

    Args:
        runs: Those that have ended already are left out.
        failed: Takes up the runs that fail.
    """

    def __init__(self, runs: Sequence[Run], failed: dict[Path, Outcome]) -> None:
        self.waiting = [run for run in runs if outcome(run).state == "missing"]
        self._failed = failed
        self._tried: dict[Path, float] = {}  # when a run was last found in another command's hands

    def take(self) -> Run | None:
        """Take out the next run; None where others train all that is left, and were asked just now.

        Those that others have finished in the meantime are taken out too.
        """
        for run in sorted(self.waiting, key=lambda run: self._tried.get(run.folder, 0.0)):
            if run.folder in self._tried and time.monotonic() - self._tried[run.folder] < RETRY_S:
                return None
            self.waiting.remove(run)
            if outcome(run).state == "missing":
                return run
        return None

    def put_back(self, run: Run, answer: Outcome) -> None:
        """Note how a run ended; one in another command's hands is to be tried again."""
        if answer.state == "busy":
            self._tried[run.folder] = time.monotonic()
            self.waiting.append(run)
        elif not answer.finished:
            self._failed[run.folder] = answer


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
        Stopped: By Ctrl-C or SIGTERM; checkpoints are written.
    """
    failed = {} if failed is None else failed
    queue = Queue(runs, failed)
    with Interruption() as stop:
        if jobs == 0:
            train_here(queue, settings, on_progress, stop)
        else:
            train_in_workers(queue, jobs, settings, on_progress, stop)
    on_progress()
    return failed


def train_in_workers(
    queue: Queue, jobs: int, settings: Settings, on_progress: Callable[[], object], stop: Interruption
) -> None:
    """Train in so many processes, which are ended whatever ends this."""
    gpus = visible_gpus(settings.accelerator)
    workers: list[Worker] = []
    jobs = min(jobs, len(queue.waiting))
    settings = replace(settings, sharing=max(1, jobs))
    try:
        for number in range(jobs):
            stop.obey()
            workers.append(Worker(settings, gpus[number % len(gpus)]))
        while queue.waiting or any(worker.run for worker in workers):
            for number, worker in enumerate(workers):
                if worker.run is None:
                    if (run := queue.take()) is not None:
                        worker.start(run)
                elif (answer := worker.answer()) is not None:
                    queue.put_back(worker.run, answer)
                    worker.run = None
                    if queue.waiting and not worker.process.is_alive():
                        worker.pipe.close()
                        workers[number] = Worker(settings, worker.gpu)
            on_progress()
            training = [worker for worker in workers if worker.run]
            wait([*(w.pipe for w in training), *(w.process.sentinel for w in training)], timeout=POLL_S)
            stop.obey()
    finally:
        end(workers)


def train_here(queue: Queue, settings: Settings, on_progress: Callable[[], object], stop: Interruption) -> None:
    """Train in this process, one run after the other: for a debugger, and where no process shall be started."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        while queue.waiting:
            run = queue.take()
            if run is None:
                time.sleep(POLL_S)
            else:
                queue.put_back(run, train_unless_busy(run, settings, stop))
            on_progress()
            stop.obey()
    finally:
        torch.set_num_threads(before)


def end(workers: Sequence[Worker]) -> None:
    """End all processes; those that do not write their checkpoint in time are killed."""
    try:
        for worker in workers:
            worker.end()
        deadline = time.monotonic() + PATIENCE_S
        for worker in workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
    finally:
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
def kept_from_children(number: signal.Signals) -> Iterator[None]:
    """Keep a signal from the processes that a block starts, for good: their parent tells them to stop.

    It waits in this thread meanwhile, and is not lost.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
