"""What a run shows while it goes on: nothing, a line an epoch, or a bar; and TensorBoard beside these."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

import calibnorm as cn
from calibnorm.inspect.evaluating import evaluating
from calibnorm.lab.data.feed import Feed
from calibnorm.lab.tasks import Task
from calibnorm.lab.training.clock import Timing
from calibnorm.lab.training.progress import EpochFigures
from calibnorm.report.files import png, write_whole
from calibnorm.report.measure import Measure

PREVIEWS = "previews"
"""The folder of a run's previews."""


class Watcher:
    """Sees a run, and shows nothing: what `train` is given unless somebody looks. Others replace what they show."""

    def say(self, text: str) -> None:
        """Show a sentence."""

    def start(self, measures: Sequence[Measure], epochs: int) -> None:
        """A run of so many epochs begins or goes on, with these figures."""

    def meet(self, network: nn.Module, test: Feed[Any]) -> None:
        """The run is of this network, and tests with these batches: to look at, and to leave as they are."""

    def begin(self, epoch: int, batches: int, done: int) -> None:
        """An epoch, from 1, begins, or goes on after so many of its batches."""

    def step(self, done: int, figures: Callable[[], dict[str, float]]) -> None:
        """So many batches of the epoch are done; `figures` returns its own so far, and waits for the device."""

    def epoch(self, row: EpochFigures, timing: Timing | None, seconds: float) -> None:
        """An epoch is over; it took so many seconds."""

    def close(self) -> None:
        """The run is over, or stopped."""


class Lines(Watcher):
    """A line an epoch, for logs."""

    def __init__(self) -> None:
        self._measures: Sequence[Measure] = ()
        self._epochs = 0

    def say(self, text: str) -> None:
        print(text, flush=True)

    def start(self, measures: Sequence[Measure], epochs: int) -> None:
        self._measures, self._epochs = measures, epochs

    def epoch(self, row: EpochFigures, timing: Timing | None, seconds: float) -> None:
        self.say(f"{line(row, self._epochs, self._measures)}  {seconds:.1f} s")


class Bar(Lines):
    """A bar of the epoch's steps with its figures so far, above it a line for each epoch that is over.

    Figures are fetched twice a second at most: on a GPU each time is a wait.
    """

    PAUSE_S = 0.5

    def __init__(self) -> None:
        super().__init__()
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        self._bar = Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[figures]}"), transient=True)
        self._task: TaskID | None = None
        self._next = 0.0

    def say(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def begin(self, epoch: int, batches: int, done: int) -> None:
        self._bar.start()
        self._task = self._bar.add_task(f"epoch {epoch}/{self._epochs}", total=batches, completed=done, figures="")

    def step(self, done: int, figures: Callable[[], dict[str, float]]) -> None:
        if self._task is None:
            return
        self._bar.update(self._task, completed=done)
        if time.monotonic() >= self._next:
            self._bar.update(self._task, figures="  ".join(_texts(self._measures, figures(), "train ", fewer=1)))
            self._next = time.monotonic() + self.PAUSE_S

    def epoch(self, row: EpochFigures, timing: Timing | None, seconds: float) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
        super().epoch(row, timing, seconds)

    def close(self) -> None:
        self._bar.stop()


class Board(Watcher):
    """TensorBoard's files, through Lightning's logger: the columns of metrics.csv and timing.csv over the epochs.

    Beside them, after every epoch, a histogram of each layer's gates on the first batch of test images.
    """

    def __init__(self, folder: Path) -> None:
        from lightning.fabric.loggers.tensorboard import TensorBoardLogger

        self._logger = TensorBoardLogger(root_dir=folder, name="tensorboard", version="")
        self._gates: Callable[[], dict[str, Tensor]] = dict

    def meet(self, network: nn.Module, test: Feed[Any]) -> None:
        first = next(iter(test))
        if isinstance(first[0], Tensor):  # pictures of several sizes are no batch
            self._gates = partial(cn.inspect.gate_values, network, [first])

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Write numbers of a step, or of an epoch; those that are none are left out."""
        self._logger.log_metrics({name: value for name, value in values.items() if math.isfinite(value)}, step)

    def epoch(self, row: EpochFigures, timing: Timing | None, seconds: float) -> None:
        figures = {**row.flat(), **({} if timing is None else vars(timing))}
        self.scalars({name: value for name, value in figures.items() if name != "epoch"}, row.epoch)
        for layer, gate in self._gates().items():
            self._logger.experiment.add_histogram(f"gate/{layer}", gate.float().cpu(), row.epoch)
        self._logger.save()

    def close(self) -> None:
        self._logger.finalize("")


class Previews(Watcher):
    """A picture after every epoch, of what the network does with the first batch of the test, where a task has one."""

    def __init__(self, folder: Path, task: Task[Any]) -> None:
        self._folder, self._task = folder / PREVIEWS, task

    def meet(self, network: nn.Module, test: Feed[Any]) -> None:
        self._network, self._batch = network, next(iter(test))

    def epoch(self, row: EpochFigures, timing: Timing | None, seconds: float) -> None:
        with evaluating(self._network):
            picture = self._task.preview(self._network, self._batch)
        if picture is not None:
            write_whole(self._folder / f"epoch-{row.epoch:03}.png", png(picture))


class Several(Watcher):
    """Hands everything on to others."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        for name in ("say", "start", "meet", "begin", "step", "epoch", "close"):
            setattr(self, name, partial(self._each, [getattr(watcher, name) for watcher in watchers]))

    @staticmethod
    def _each(functions: Sequence[Callable[..., None]], *arguments: Any) -> None:
        for function in functions:
            function(*arguments)


def screen(progress: bool = True) -> Watcher:
    """Return a bar where a person looks and wants one, else lines."""
    return Bar() if progress and sys.stdout.isatty() else Lines()


def line(row: EpochFigures, epochs: int, measures: Sequence[Measure]) -> str:
    """Return an epoch's figures as a line."""
    parts = [f"epoch {row.epoch:>{len(str(epochs))}}/{epochs}"]
    for part in ("train ", *(["test "] if row.tested else [])):
        parts.append(part + " ".join(_texts(measures, row.figures, part)))
    return "  ".join([*parts, f"learning rate {row.learning_rate:.4g}"])


def _texts(measures: Sequence[Measure], figures: dict[str, float], part: str, fewer: int = 0) -> list[str]:
    """Return the figures of training or of the test, each with its name, and so many digits fewer than usual."""
    return [
        f"{measure.label.removeprefix(part)} {measure.text(figures[measure.name], measure.digits - fewer)}"
        for measure in measures
        if measure.in_line and measure.label.startswith(part)
    ]
