"""What a run shows while it goes on: nothing, a line an epoch, or a bar; and TensorBoard beside these."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from calibnorm.lab.training.clock import Timing
from calibnorm.lab.training.state import Row


class Watcher:
    """Sees a run, and shows nothing: what `train` is given unless somebody looks. Others replace what they show."""

    def say(self, text: str) -> None:
        """Show a sentence."""

    def begin(self, epoch: int, epochs: int, batches: int, done: int) -> None:
        """An epoch, from 1, begins, or goes on after so many of its batches."""

    def step(self, done: int, figures: Callable[[], tuple[float, float, float]]) -> None:
        """So many batches of the epoch are done; `figures` has loss and accuracy, and waits for the device."""

    def epoch(self, row: Row, timing: Timing | None, seconds: float) -> None:
        """An epoch is over; it took so many seconds."""

    def close(self) -> None:
        """The run is over, or stopped."""


class Lines(Watcher):
    """A line an epoch, for logs."""

    def __init__(self) -> None:
        self._epochs = 0

    def say(self, text: str) -> None:
        """See `Watcher`."""
        print(text, flush=True)

    def begin(self, epoch: int, epochs: int, batches: int, done: int) -> None:
        """See `Watcher`."""
        self._epochs = epochs

    def epoch(self, row: Row, timing: Timing | None, seconds: float) -> None:
        """See `Watcher`."""
        self.say(f"{line(row, self._epochs)}  {seconds:.1f} s")


class Bar(Lines):
    """A bar of the epoch's steps with loss and accuracy so far, above it a line for each epoch that is over.

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
        """See `Watcher`."""
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def begin(self, epoch: int, epochs: int, batches: int, done: int) -> None:
        """See `Watcher`."""
        super().begin(epoch, epochs, batches, done)
        self._bar.start()
        self._task = self._bar.add_task(f"epoch {epoch}/{epochs}", total=batches, completed=done, figures="")

    def step(self, done: int, figures: Callable[[], tuple[float, float, float]]) -> None:
        """See `Watcher`."""
        if self._task is None:
            return
        self._bar.update(self._task, completed=done)
        if time.monotonic() >= self._next:
            loss, accuracy, _ = figures()
            self._bar.update(self._task, figures=f"loss {loss:.3f}  accuracy {accuracy:.1f} %")
            self._next = time.monotonic() + self.PAUSE_S

    def epoch(self, row: Row, timing: Timing | None, seconds: float) -> None:
        """See `Watcher`."""
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
        super().epoch(row, timing, seconds)

    def close(self) -> None:
        """See `Watcher`."""
        self._bar.stop()


class Board(Watcher):
    """TensorBoard's files, through Lightning's logger: the columns of metrics.csv and timing.csv over the epochs."""

    def __init__(self, folder: Path) -> None:
        from lightning.fabric.loggers.tensorboard import TensorBoardLogger

        self._logger = TensorBoardLogger(root_dir=folder, name="tensorboard", version="")

    def epoch(self, row: Row, timing: Timing | None, seconds: float) -> None:
        """See `Watcher`."""
        figures = {**vars(row), **({} if timing is None else vars(timing))}
        self._logger.log_metrics(
            {name: value for name, value in figures.items() if name != "epoch" and math.isfinite(value)}, row.epoch
        )
        self._logger.save()

    def close(self) -> None:
        """See `Watcher`."""
        self._logger.finalize("")


class Several(Watcher):
    """Hands everything on to others."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        self._watchers = watchers

    def say(self, text: str) -> None:
        """See `Watcher`."""
        for watcher in self._watchers:
            watcher.say(text)

    def begin(self, epoch: int, epochs: int, batches: int, done: int) -> None:
        """See `Watcher`."""
        for watcher in self._watchers:
            watcher.begin(epoch, epochs, batches, done)

    def step(self, done: int, figures: Callable[[], tuple[float, float, float]]) -> None:
        """See `Watcher`."""
        for watcher in self._watchers:
            watcher.step(done, figures)

    def epoch(self, row: Row, timing: Timing | None, seconds: float) -> None:
        """See `Watcher`."""
        for watcher in self._watchers:
            watcher.epoch(row, timing, seconds)

    def close(self) -> None:
        """See `Watcher`."""
        for watcher in self._watchers:
            watcher.close()


def screen(progress: bool = True) -> Watcher:
    """Return a bar where a person looks and wants one, else lines."""
    return Bar() if progress and sys.stdout.isatty() else Lines()


def line(row: Row, epochs: int) -> str:
    """Return an epoch's figures as a line."""
    text = f"epoch {row.epoch:>{len(str(epochs))}}/{epochs}  train loss {row.train_loss:.4f}"
    text += f" accuracy {row.train_accuracy:.2f} %"
    if not math.isnan(row.test_accuracy):
        text += f"  test loss {row.test_loss:.4f} accuracy {row.test_accuracy:.2f} %"
    return f"{text}  learning rate {row.learning_rate:.4g}"
