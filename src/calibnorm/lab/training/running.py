"""`train`: a recipe, a folder, and everything between the two in its order."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.fabric import Fabric
from torch import nn

from calibnorm.errors import RunFailed
from calibnorm.lab import data
from calibnorm.lab.recipes import Recipe
from calibnorm.lab.training import folder as folders
from calibnorm.lab.training import inputs, processes
from calibnorm.lab.training.checkpoints import Checkpoints, clear, dumped
from calibnorm.lab.training.clock import Timing
from calibnorm.lab.training.folder import Result
from calibnorm.lab.training.guard import AGAIN, together
from calibnorm.lab.training.loop import Run
from calibnorm.lab.training.machine import Accelerator, convolutions, float32_convolutions
from calibnorm.lab.training.processes import Machine, on_first
from calibnorm.lab.training.state import Progress, Row
from calibnorm.lab.training.trainee import Trainee, build
from calibnorm.lab.training.watching import Watcher
from calibnorm.report.environment import describe_environment, package_version
from calibnorm.report.files import write_json, write_whole

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

    With several processes, an error of one of them ends the others, as `guard.together` says: those do not return.
    """
    watcher = watcher or Watcher()
    inputs.check(recipe)
    inputs.check_machine(recipe, accelerator)
    fabric = processes.start(Machine(accelerator, devices, num_nodes), recipe.precision)
    watcher = watcher if fabric.is_global_zero else Watcher()

    def prepared() -> tuple[inputs.Inputs, nn.Module]:
        feeds = inputs.load(recipe, data_root, fabric, workers)
        network = build(recipe, feeds.classes, feeds.channels)
        inputs.try_out(recipe, network, feeds, fabric.world_size)
        return feeds, network

    # Whoever fails says so before its feeds are closed, which may take seconds.
    with _named_workers(), contextlib.ExitStack() as stack, together(fabric, stop, watcher.close):
        if (done := on_first(fabric, lambda: folders.finished(folder, recipe))) is not None:
            return done
        on_first(fabric, lambda: folders.check(folder, recipe, override))
        feeds, network = processes.on_all(fabric, prepared)
        stack.callback(watcher.close)
        stack.callback(feeds.close)
        stack.enter_context(_repeatable(fabric.device))
        stack.enter_context(convolutions(fabric.device, recipe.precision))
        trainee = Trainee(recipe, fabric, network)
        on_first(fabric, lambda: stack.enter_context(folders.locked(folder)))
        files = Files(folder, recipe, fabric, trainee, watcher)
        content = files.open(override)
        run = Run(recipe, fabric, feeds, trainee, files.checkpoint, watcher, stop, checkpoint_minutes)
        if content is not None:
            run.restore(content)
            files.tables(run.progress.rows, run.progress.timings)
            watcher.say(f"{folder}: going on after step {run.progress.step}")
        while run.progress.epoch < recipe.epochs:
            row = run.epoch()
            run.check()  # before the weights of the epoch before are written over
            files.weights(run.progress.rows, row)
            run.write()
            files.tables(run.progress.rows, run.progress.timings)
        return files.finish(run)


@contextlib.contextmanager
def _named_workers() -> Iterator[None]:
    """Say in a line that a process that reads pictures has died.

    Raises:
        RunFailed: In place of what torch raises then, wherever the program is.
    """
    try:
        yield
    except RuntimeError as error:
        if (ours := data.worker_error(error)) is None:
            raise
        raise RunFailed(f"{ours}; {AGAIN}") from error


class Files:
    """What a run leaves in its folder; only process 0 writes, and an error of it is raised in all."""

    def __init__(self, folder: Path, recipe: Recipe, fabric: Fabric, trainee: Trainee, watcher: Watcher) -> None:
        self.folder, self.recipe, self.fabric, self.trainee = folder, recipe, fabric, trainee
        self._say = watcher.say
        self.checkpoints = Checkpoints(folder / folders.CHECKPOINTS, watcher.say)

    def open(self, override: Sequence[str]) -> dict[str, Any] | None:
        """Claim the folder; return the newest checkpoint's content."""

        def work() -> dict[str, Any] | None:
            for part in (self.folder, self.checkpoints.folder):
                clear(part)
            if (content := self.checkpoints.load()) is not None:
                rows = Progress.from_state_dict(content["progress"]).rows
                folders.check_epochs(self.folder, self.recipe.epochs, rows)
            folders.claim(self.folder, self.recipe, override)
            environment = describe_environment() | {
                "lightning": package_version("lightning"),
                "device": _device_name(self.fabric.device),
                "processes": self.fabric.world_size,
                "threads": torch.get_num_threads(),
                "convolutions": float32_convolutions(self.fabric.device),
            }
            changed = folders.note_environment(self.folder, environment)
            if content is not None and changed:
                self._warn(changed)
            return content

        return self._first(work)

    def _warn(self, changed: dict[str, list[Any]]) -> None:
        what = ", ".join(f"{name} {now} in place of {before}" for name, (before, now) in changed.items())
        self._say(f"{self.folder}: goes on with {what}: not bit for bit what an undisturbed run comes to")

    def checkpoint(self, content: dict[str, Any], step: int) -> None:
        """Write a checkpoint."""
        self._first(lambda: self.checkpoints.save(content, step) and None)

    def weights(self, rows: Sequence[Row], row: Row) -> None:
        """Write the weights as they were tested, for people: the last ones, and the best ones where these are."""

        def work() -> None:
            content = {
                "recipe": self.recipe.to_dict(),
                "epoch": row.epoch,
                "test_accuracy": row.test_accuracy,
                "network": self.trainee.weights(),
            }
            written = dumped(content)
            write_whole(self.folder / folders.LAST, written)
            if folders.best_row(rows) is row:
                write_whole(self.folder / folders.BEST, written)

        self._first(work)

    def tables(self, rows: Sequence[Row], timings: Sequence[Timing]) -> None:
        """Write metrics.csv and timing.csv."""

        def work() -> None:
            folders.write_rows(self.folder / folders.METRICS, Row, rows)
            folders.write_rows(self.folder / folders.TIMING, Timing, timings)

        self._first(work)

    def finish(self, run: Run) -> Result:
        """Write result.json, which marks the run as finished."""
        rows = run.progress.rows
        last, best = rows[-1], folders.best_row(rows)
        result = Result(
            test_accuracy=last.test_accuracy,
            test_top5=last.test_top5,
            best_test_accuracy=float("nan") if best is None else best.test_accuracy,
            best_epoch=0 if best is None else best.epoch,
            train_loss=last.train_loss,
            parameters=self.trainee.parameters,
            epochs=self.recipe.epochs,
            seconds=run.seconds,
        )
        self._first(lambda: write_json(self.folder / folders.RESULT, vars(result)))
        return result

    def _first(self, work: Callable[[], T]) -> T:
        def guarded() -> T:
            with folders.writing(self.folder):
                return work()

        return on_first(self.fabric, guarded)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


@contextlib.contextmanager
def _repeatable(device: torch.device) -> Iterator[None]:
    """Let cuDNN choose algorithms that add in one order, while a run on a GPU goes on."""
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
