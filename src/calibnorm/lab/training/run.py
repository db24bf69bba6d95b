"""`train`: a recipe, a folder, and everything between the two in its order."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.fabric import Fabric
from torch import nn

from calibnorm.errors import RunFailed, Setting
from calibnorm.lab import data, tasks
from calibnorm.lab.data.workers import readers
from calibnorm.lab.recipes import Recipe
from calibnorm.lab.tasks import Feeds, Place, Task
from calibnorm.lab.training import folder as folders
from calibnorm.lab.training import processes, same_data
from calibnorm.lab.training.checkpoints import REMEDY, Checkpoints, clear, dumped
from calibnorm.lab.training.clock import Timing
from calibnorm.lab.training.companions import AGAIN
from calibnorm.lab.training.contents import CHECKPOINT, refused
from calibnorm.lab.training.ending import end_together
from calibnorm.lab.training.folder import Result
from calibnorm.lab.training.learner import Learner, check_statistics, initial_network
from calibnorm.lab.training.loop import Loop
from calibnorm.lab.training.machine import (
    Accelerator,
    check_machine,
    check_start,
    convolutions,
    float32_convolutions,
    starts_others,
)
from calibnorm.lab.training.processes import Machine, on_first
from calibnorm.lab.training.progress import EpochFigures, Progress
from calibnorm.lab.training.watchers import Watcher
from calibnorm.report.environment import describe_environment, package_version
from calibnorm.report.files import write_csv, write_json, write_whole

T = TypeVar("T")

CHECKPOINT_MINUTES = 10.0


def train(
    recipe: Recipe,
    folder: Path,
    *,
    data_root: Path = Path("data"),
    accelerator: Accelerator = "auto",
    devices: int | None = None,
    num_nodes: int | None = None,
    override: Sequence[str] = (),
    workers: int | None = None,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    watcher: Watcher | None = None,
    stop: Callable[[], int] = int,
) -> Result:
    """Train a recipe into a folder; go on where the folder holds an unfinished run of it.

    However often the run is killed and started again, by equal arguments on an equal machine, its weights and its
    metrics.csv are bit for bit those of a run that nobody disturbed. This is tested on CPUs, with one process and with
    two. On GPUs cuDNN alone is told to be deterministic; other kernels may add in an order that changes.

    Args:
        recipe: The settings.
        folder: For the run; made where it is missing.
        data_root: Where data sets lie.
        accelerator: "cpu", "cuda" or "auto", a GPU where there is one.
        devices: Processes on this machine; more than one only from a command line that they can run again, or torchrun.
        num_nodes: Machines, with torchrun.
        override: Settings that may differ from those of the run in the folder.
        workers: Processes that read a folder set's pictures, for each feed; by default a part of the cores, at most 8.
        checkpoint_minutes: Between two checkpoints inside an epoch; there is one after each epoch anyway.
        watcher: Sees what happens; nothing is shown by default.
        stop: Asked after each step for the number of a signal that ends the run, 0 for none; the run then saves.

    Returns:
        The result, that of before where the run is finished already.

    Raises:
        UsageError: Before any training: the folder holds something else, data are missing, a setting cannot be used.
        RunFailed: The loss is NaN, a checkpoint cannot be written, or a process that reads pictures has died; the
            checkpoint of before is kept.
        Stopped: `stop` said so, and the run was saved.

    With several processes, an error of one of them ends the others, as `ending.end_together` says: those do not return.
    """
    watcher, task = watcher or Watcher(), tasks.of(recipe)
    task.check()
    check_machine(recipe, accelerator)
    check_start(task, accelerator, devices)
    if starts_others(devices):  # before they are: what this one finds out alone
        if (done := folders.finished(folder, task)) is not None:
            return done
        folders.check(folder, recipe, override)
    fabric = processes.start(Machine(accelerator, devices, num_nodes), recipe.precision)
    watcher = watcher if fabric.is_global_zero else Watcher()

    def prepared() -> tuple[Feeds[Any], nn.Module]:
        feeds = load(task, data_root, fabric, workers)
        network = initial_network(task, feeds)
        check_statistics(recipe, network, fabric.world_size)
        task.try_out(network, feeds)
        return feeds, network

    # Whoever fails says so before its feeds are closed, which may take seconds.
    with _named_workers(), contextlib.ExitStack() as stack, end_together(fabric, stop, watcher.close):
        if (done := on_first(fabric, lambda: folders.finished(folder, task))) is not None:
            return done
        on_first(fabric, lambda: folders.check(folder, recipe, override))
        feeds, network = processes.on_all(fabric, prepared)
        stack.callback(watcher.close)
        stack.callback(feeds.close)
        stack.enter_context(convolutions(fabric.device, recipe.precision))
        learner = Learner(task, fabric, network)
        on_first(fabric, lambda: stack.enter_context(folders.locked(folder)))
        contents = feeds.train.contents
        files = Files(folder, fabric, learner, watcher, feeds)
        content = files.open(override)
        for sentence in contents.news() if contents is not None else ():
            watcher.say(sentence)
        run = Loop(task, fabric, feeds, learner, files.checkpoint, watcher, stop, checkpoint_minutes)
        watcher.start(task.measures, recipe.epochs)
        watcher.meet(learner.bare, feeds.test)
        if content is not None:
            processes.on_all(fabric, lambda: files.restore(run, content))
            files.tables(run.progress.rows, run.progress.timings)
            watcher.say(f"{folder}: going on after step {run.progress.step}")
        while run.progress.epoch < recipe.epochs and not run.waited:
            row = run.epoch()
            run.check()  # before the weights of the epoch before are written over
            files.weights(run.progress.rows, row)
            run.write()
            files.tables(run.progress.rows, run.progress.timings)
        if run.progress.epoch < recipe.epochs:
            none = f"no better {task.headline.label} in {recipe.patience} tests"
            watcher.say(f"{folder}: ended after epoch {run.progress.epoch}: {none}")
        return files.finish(run)


def load(task: Task[Any], data_root: Path, fabric: Fabric, workers: int | None = None) -> Feeds[Any]:
    """Return a process's feeds; by default this process's part of the cores reads for them, at most 8."""
    if workers is None:
        # Of the strategies for several processes, each has this; that for one process has not.
        workers = readers(getattr(fabric.strategy, "num_processes", 1))
    return task.feeds(data_root, Place(device=fabric.device, rank=fabric.global_rank, world=fabric.world_size), workers)


@contextlib.contextmanager
def _named_workers() -> Iterator[None]:
    """Raise RunFailed, in a line, in place of what torch raises anywhere when a process that reads has died."""
    try:
        yield
    except RuntimeError as error:
        if (ours := data.worker_error(error)) is None:
            raise
        raise RunFailed(f"{ours}; {AGAIN}") from error


class Files:
    """What a run leaves in its folder; only process 0 writes, and an error of it is raised in all."""

    def __init__(
        self, folder: Path, fabric: Fabric, learner: Learner[Any], watcher: Watcher, feeds: Feeds[Any]
    ) -> None:
        self.folder, self.fabric, self.learner, self.contents = folder, fabric, learner, feeds.train.contents
        self._beside = learner.task.beside(feeds)
        self.task, self.recipe = learner.task, learner.recipe
        self._say = watcher.say
        self.checkpoints = Checkpoints(folder / folders.CHECKPOINTS, watcher.say)

    def open(self, override: Sequence[str]) -> dict[str, Any] | None:
        """Claim the folder; return the newest checkpoint's content."""
        device = self.fabric.device

        def work() -> dict[str, Any] | None:
            for part in (self.folder, self.checkpoints.folder):
                clear(part)
            if (content := self.checkpoints.load(CHECKPOINT)) is not None:
                rows = Progress.from_state_dict(content["progress"]).rows
                folders.check_epochs(self.folder, self.recipe.epochs, rows)
            remedy = ("; put it back as it was, or choose another ", Setting("folder"))
            same_data.check(self.folder, self.contents, *remedy, checkpoint=content)
            folders.claim(self.folder, self.recipe, override)
            environment = describe_environment() | {
                "lightning": package_version("lightning"),
                "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
                "processes": self.fabric.world_size,
                "threads": torch.get_num_threads(),
                "convolutions": float32_convolutions(device),
                "loaded": folders.sources_of(self.recipe),
            }
            for path in folders.changed_sources(self.folder):
                self._say(f"{self.folder}: goes on with {path}, which has changed since it began")
            same_data.note(self.folder, self.contents, anew=content is None)
            changed = folders.note_environment(self.folder, environment)
            if content is not None and changed:
                what = ", ".join(f"{name} {now} in place of {before}" for name, (before, now) in changed.items())
                self._say(f"{self.folder}: goes on with {what}: not bit for bit what an undisturbed run comes to")
            return content

        return self._first(work)

    def restore(self, run: Loop[Any], content: dict[str, Any]) -> None:
        """Go to where the newest checkpoint was written; raise UsageError where it is that of another run."""
        newest = [self.checkpoints.folder, *self.checkpoints.paths()][-1]  # the folder on a machine that has none
        with refused(newest, "does not fit this run", REMEDY):
            run.restore(content)

    def checkpoint(self, content: dict[str, Any], step: int) -> None:
        """Write a checkpoint, with what the run is trained on."""
        data = {} if self.contents is None else {"data": self.contents.to_dict()}
        self._first(lambda: self.checkpoints.save(content | data, step) and None)

    def weights(self, rows: Sequence[EpochFigures], row: EpochFigures) -> None:
        """Write the weights as they were tested, for people: the last ones, and the best ones where these are."""
        headline = self.task.headline

        def work() -> None:
            figures = {"epoch": row.epoch, headline.name: row.figures[headline.name]}
            names = {} if self.contents is None else self.contents.of_outputs()
            says = {"recipe": self.recipe.to_dict(), **figures, **names, **self._beside}
            content = {**says, "network": self.learner.weights()}
            written = dumped(content)
            write_whole(self.folder / folders.LAST, written)
            if folders.best_row(rows, self.task) is row:
                write_whole(self.folder / folders.BEST, written)

        self._first(work)

    def tables(self, rows: Sequence[EpochFigures], timings: Sequence[Timing]) -> None:
        """Write metrics.csv and timing.csv anew: a resumed run's metrics.csv is that of an undisturbed one."""

        def work() -> None:
            write_csv(self.folder / folders.METRICS, [row.flat() for row in rows], folders.columns(self.task))
            write_csv(self.folder / folders.TIMING, [*map(asdict, timings)], [field.name for field in fields(Timing)])

        self._first(work)

    def finish(self, run: Loop[Any]) -> Result:
        """Write result.json, which marks the run as finished."""
        result = folders.result_of(run.progress.rows, self.task, self.learner.parameters, run.seconds)
        self._first(lambda: write_json(self.folder / folders.RESULT, result.flat()))
        return result

    def _first(self, work: Callable[[], T]) -> T:
        def guarded() -> T:
            with folders.writing(self.folder):
                return work()

        return on_first(self.fabric, guarded)
