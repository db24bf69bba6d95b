"""The loop, on Lightning Fabric: devices, processes and mixed precision are Fabric's, the order of things is ours.

Not Lightning's Trainer: its own restart in the middle of an epoch depends on its version and leaves random numbers and
metrics to the user, which is most of what an exact resumption is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from lightning.fabric import Fabric

from calibnorm.errors import Diverged, Setting, Stopped
from calibnorm.lab.tasks import Feeds, Task
from calibnorm.lab.training.clock import Timing, make_clock
from calibnorm.lab.training.folder import waited
from calibnorm.lab.training.learner import Learner
from calibnorm.lab.training.meetings import Meetings
from calibnorm.lab.training.processes import Processes, largest
from calibnorm.lab.training.progress import EpochFigures, LossWatch, Progress
from calibnorm.lab.training.schedule import learning_rate
from calibnorm.lab.training.seeds import step_seed
from calibnorm.lab.training.watchers import Watcher

Batch = TypeVar("Batch")

LOOK_EVERY = 50
"""Steps between two looks at what is only known after a wait: losses on a GPU; at most, between two meetings."""

NEVER = 1 << 40
"""No run has so many steps."""

Save = Callable[[dict[str, Any], int], object]


class Loop(Generic[Batch]):
    """A run on its way, epoch by epoch.

    Args:
        task: What is learned.
        fabric: Device, processes and precision.
        feeds: The batches.
        learner: The network.
        save: Takes a checkpoint's content, in process 0, and its step.
        watcher: Sees what happens.
        stop: Returns the number of the signal that ends the run, or 0.
        checkpoint_minutes: Between two checkpoints inside an epoch.
    """

    def __init__(
        self,
        task: Task[Batch],
        fabric: Fabric,
        feeds: Feeds[Batch],
        learner: Learner[Batch],
        save: Save,
        watcher: Watcher,
        stop: Callable[[], int],
        checkpoint_minutes: float,
    ) -> None:
        self.task, self.recipe, self.fabric, self.feeds, self.learner = task, task.recipe, fabric, feeds, learner
        self.watcher = watcher
        self._save, self._stop, self._minutes = save, stop, checkpoint_minutes
        self.progress = Progress()
        self._processes = Processes(fabric.world_size)
        self._sums = torch.zeros((), dtype=torch.float64, device=fabric.device)  # as long as the first step's are
        self._losses = LossWatch(fabric.device)
        self._meetings = Meetings(fabric, LOOK_EVERY)
        self._clock = make_clock(fabric.device, len(feeds.train))
        self._seconds, self._started = 0.0, time.monotonic()
        self._saved, self._saved_step = time.monotonic(), 0

    @property
    def seconds(self) -> float:
        """Time in the loop, over all resumptions."""
        return self._seconds + time.monotonic() - self._started

    @property
    def waited(self) -> bool:
        """Whether the recipe's patience is at its end: a question to the rows alone, so a resumed run ends as early."""
        return waited(self.progress.rows, self.task, self.recipe.patience)

    def epoch(self) -> EpochFigures:
        """Train through the feed once, or through what is left of it, then test."""
        progress, feed, start = self.progress, self.feeds.train, time.perf_counter()
        feed.set_epoch(progress.epoch)
        batches = len(feed)
        done = progress.step - progress.epoch * batches
        self.watcher.begin(progress.epoch + 1, batches, done)
        self._train(batches)
        seconds, steps = time.perf_counter() - start, batches - done
        tested = (progress.epoch + 1) % self.recipe.test_every == 0 or progress.epoch + 1 == self.recipe.epochs
        found = self._test() if tested else {}
        found |= self.task.train_figures(self._processes.sum(self._sums))
        rate = learning_rate(self.recipe, progress.step - 1, batches)
        progress.epoch += 1
        figures = {measure.name: found.get(measure.name, math.nan) for measure in self.task.measures}
        row = EpochFigures(progress.epoch, figures, rate)
        progress.rows.append(row)
        timing = None
        if (medians := self._clock.medians()) is not None:
            per_second = steps * self.recipe.images_a_step / seconds
            timing = Timing(epoch=progress.epoch, images_per_second=per_second, **medians)
            progress.timings.append(timing)
        self._sums = torch.zeros_like(self._sums)
        self.watcher.epoch(row, timing, time.perf_counter() - start)
        return row

    def _train(self, batches: int) -> None:
        recipe, progress, learner, clock = self.recipe, self.progress, self.learner, self._clock
        learner.network.train()
        feed = iter(self.feeds.train)
        self._meetings.begin()
        while True:
            clock.begin()
            batch = next(feed, None)
            if batch is None:
                return
            clock.mark()
            torch.manual_seed(step_seed(recipe.seed, progress.step, self.fabric.global_rank))
            learner.set_rate(learning_rate(recipe, progress.step, batches))
            loss, sums = learner.step(batch, clock)
            self._sums = self._sums + sums
            progress.step += 1
            self._losses.see(loss, progress.step)
            clock.mark()
            self.watcher.step(progress.step - progress.epoch * batches, lambda: self.task.train_figures(self._sums))
            self._between_steps()

    def _between_steps(self) -> None:
        """Stop, or save, where it is time: all processes do the same, and so they meet, once a second."""
        several = self.fabric.world_size > 1
        if several and not self._meetings.step():
            return
        due = time.monotonic() - self._saved >= 60 * self._minutes
        wait = several or due or self.fabric.device.type == "cpu" or self.progress.step % LOOK_EVERY == 0
        bad = self._losses.first_bad() if wait else 0
        values = self._stop(), int(due), earliness(bad)
        stop, save, early = self._meetings.largest(*values) if several else values
        if early:
            raise self._diverged(earliness(early))
        if save or stop:
            self.save()
        if stop:
            raise self._stopped(stop)

    def _test(self) -> dict[str, float]:
        """Return the figures of the test."""
        meter, meetings = self.task.meter(self.fabric.device), Meetings(self.fabric, LOOK_EVERY)
        self.learner.before_tests()
        several = self.fabric.world_size > 1
        (fewest,) = largest(self.fabric, -len(self.feeds.test))  # some processes may have a batch more
        with torch.no_grad():
            for number, batch in enumerate(self.feeds.test, 1):
                meter.add(self.learner.call_tested, batch)
                if several and (number > -fewest or not meetings.step()):
                    continue
                (stop,) = meetings.largest(self._stop()) if several else (self._stop(),)
                if stop:
                    self.save()
                    raise self._stopped(stop)
        return meter.figures(self._processes)

    def check(self) -> None:
        """Raise Diverged where what is about to be written holds a number that is none."""
        bad = self._losses.first_bad() or (0 if self.learner.finite() else self.progress.step)
        (early,) = largest(self.fabric, earliness(bad))
        if early:
            raise self._diverged(earliness(early))

    def save(self) -> None:
        """Look at what is about to be written, and write a checkpoint."""
        self.check()
        self.write()

    def write(self) -> None:
        """Write a checkpoint of what `check` has looked at; raise RunFailed where it cannot be written."""
        under_way = self.progress.step > self.progress.epoch * len(self.feeds.train)
        content = {
            **self.learner.state_dict(),
            "progress": self.progress.state_dict(),
            "seconds": self.seconds,
            "feed": self.feeds.train.state_dict() if under_way else None,
            "sums": self._processes.sum(self._sums).tolist(),
        }
        self._save(content, self.progress.step)
        self._saved, self._saved_step = time.monotonic(), self.progress.step

    def restore(self, content: dict[str, Any]) -> None:
        """Go to where a checkpoint was written; raise some error or other where it is not one of this run."""
        self.progress = Progress.from_state_dict(content["progress"])
        self._check_place(content)
        self.learner.load_state_dict(content)
        self._seconds, self._started = content["seconds"], time.monotonic()
        self._saved_step = self.progress.step
        if content["feed"] is not None:
            self.feeds.train.load_state_dict(content["feed"])
        sums = torch.tensor(content["sums"] if content["feed"] else 0, dtype=torch.float64, device=self.fabric.device)
        self._sums = sums if self.fabric.is_global_zero else torch.zeros_like(sums)  # process 0 has those of all

    def _check_place(self, content: dict[str, Any]) -> None:
        """Raise ValueError where epoch, step, batch and figures contradict each other, or are not of this run."""
        progress, feed, batches = self.progress, content["feed"], len(self.feeds.train)
        done = progress.step - progress.epoch * batches
        if not 0 <= done <= batches:
            raise ValueError(f"step {progress.step} is not in epoch {progress.epoch + 1} of {batches} steps each")
        if feed != ({"epoch": progress.epoch, "next_batch": done} if done else None):
            raise ValueError(f"{done} batches of the epoch are done, and the feed is at {feed}")
        names = [measure.name for measure in self.task.measures]
        if any(list(row.figures) != names for row in progress.rows):
            raise ValueError(f"its figures are not {', '.join(names)}")
        if done:
            self.task.train_figures(torch.tensor(content["sums"], dtype=torch.float64))

    def _diverged(self, step: int) -> Diverged:
        epoch = (step - 1) // len(self.feeds.train) + 1
        kept = f"the checkpoint of step {self._saved_step} is kept" if self._saved_step else "nothing was saved before"
        reason = f"the loss or a weight is NaN or infinite at step {step} (epoch {epoch})"
        others = (Setting("learning_rate"), ", more ", Setting("warmup_epochs"), ", or a ", Setting("clip_norm"))
        named = (", named in ", Setting("override"), " too") if self._saved_step else ()
        return Diverged(f"{reason}; {kept}", "; the same settings come here again: try a smaller ", *others, *named)

    def _stopped(self, number: int) -> Stopped:
        epoch, batches = self.progress.epoch, len(self.feeds.train)
        return Stopped(number, f"stopped in epoch {epoch + 1} after {self.progress.step - epoch * batches} steps of it")


def earliness(step: int) -> int:
    """Return a number that is larger for an earlier step, and 0 for step 0, which is none; its own inverse."""
    return NEVER - step if step else 0
