"""The loop, on Lightning Fabric: devices, processes and mixed precision are Fabric's, the order of things is ours.

Not Lightning's Trainer: its own restart in the middle of an epoch depends on its version and leaves random numbers and
metrics to the user, which is most of what an exact resumption is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.fabric import Fabric

from calibnorm.errors import Diverged, Stopped
from calibnorm.lab.recipes import Recipe
from calibnorm.lab.training.clock import Timing, make_clock
from calibnorm.lab.training.inputs import Inputs
from calibnorm.lab.training.looks import Looks
from calibnorm.lab.training.processes import largest, summed
from calibnorm.lab.training.schedule import learning_rate
from calibnorm.lab.training.seeds import step_seed
from calibnorm.lab.training.state import LossWatch, Progress, Row, Sums, cross_entropy
from calibnorm.lab.training.trainee import Trainee
from calibnorm.lab.training.watching import Watcher

LOOK_EVERY = 50
"""Steps between two looks at what is only known after a wait: losses on a GPU; with several processes, at most."""

NEVER = 1 << 40
"""No run has so many steps."""

Save = Callable[[dict[str, Any], int], object]


class Run:
    """A run on its way.

    Args:
        recipe: The settings.
        fabric: Device, processes and precision.
        inputs: The feeds.
        trainee: The network.
        save: Takes a checkpoint's content, in process 0, and its step.
        watcher: Sees what happens.
        stop: Returns the number of the signal that ends the run, or 0.
        checkpoint_minutes: Between two checkpoints inside an epoch.
    """

    def __init__(
        self,
        recipe: Recipe,
        fabric: Fabric,
        inputs: Inputs,
        trainee: Trainee,
        save: Save,
        watcher: Watcher,
        stop: Callable[[], int],
        checkpoint_minutes: float,
    ) -> None:
        self.recipe, self.fabric, self.inputs, self.trainee = recipe, fabric, inputs, trainee
        self.watcher = watcher
        self._save, self._stop, self._minutes = save, stop, checkpoint_minutes
        self.progress = Progress()
        self.sums = Sums(fabric.device)
        self._losses = LossWatch(fabric.device)
        self._looks = Looks(fabric, LOOK_EVERY)
        self._clock = make_clock(fabric.device, len(inputs.train))
        self._seconds, self._started = 0.0, time.monotonic()
        self._saved, self._saved_step = time.monotonic(), 0

    @property
    def seconds(self) -> float:
        """Time in the loop, over all resumptions."""
        return self._seconds + time.monotonic() - self._started

    def epoch(self) -> Row:
        """Train through the feed once, or through what is left of it, then test."""
        progress, feed, start = self.progress, self.inputs.train, time.perf_counter()
        feed.set_epoch(progress.epoch)
        batches = len(feed)
        done = progress.step - progress.epoch * batches
        self.watcher.begin(progress.epoch + 1, self.recipe.epochs, batches, done)
        self._train(batches)
        seconds, steps = time.perf_counter() - start, batches - done
        tested = (progress.epoch + 1) % self.recipe.test_every == 0 or progress.epoch + 1 == self.recipe.epochs
        figures = self._test() if tested else (math.nan, math.nan, math.nan)
        train_loss, train_accuracy, _ = Sums.means_of(summed(self.fabric, self.sums.totals))
        rate = learning_rate(self.recipe, progress.step - 1, batches)
        progress.epoch += 1
        row = Row(progress.epoch, train_loss, train_accuracy, *figures, rate)
        progress.rows.append(row)
        timing = None
        if (medians := self._clock.medians()) is not None:
            per_second = steps * self.recipe.images_a_step / seconds
            timing = Timing(epoch=progress.epoch, images_per_second=per_second, **medians)
            progress.timings.append(timing)
        self.sums = Sums(self.fabric.device)
        self.watcher.epoch(row, timing, time.perf_counter() - start)
        return row

    def _train(self, batches: int) -> None:
        recipe, progress, trainee, clock = self.recipe, self.progress, self.trainee, self._clock
        trainee.network.train()
        feed = iter(self.inputs.train)
        self._looks.begin()
        while True:
            clock.begin()
            batch = next(feed, None)
            if batch is None:
                return
            clock.mark()
            images, labels = batch
            torch.manual_seed(step_seed(recipe.seed, progress.step, self.fabric.global_rank))
            trainee.set_rate(learning_rate(recipe, progress.step, batches))
            loss, logits = trainee.step(images, labels, clock)
            self.sums.add(loss, logits, labels)
            progress.step += 1
            self._losses.see(loss, progress.step)
            clock.mark()
            self.watcher.step(progress.step - progress.epoch * batches, self.sums.means)
            self._between_steps()

    def _between_steps(self) -> None:
        """Stop, or save, where it is time: all processes do the same, and so they look together, once a second."""
        several = self.fabric.world_size > 1
        if several and not self._looks.step():
            return
        due = time.monotonic() - self._saved >= 60 * self._minutes
        wait = several or due or self.fabric.device.type == "cpu" or self.progress.step % LOOK_EVERY == 0
        bad = self._losses.first_bad() if wait else 0
        values = self._stop(), int(due), earliness(bad)
        stop, save, early = self._looks.together(*values) if several else values
        if early:
            raise self._diverged(earliness(early))
        if save or stop:
            self.save()
        if stop:
            raise self._stopped(stop)

    def _test(self) -> tuple[float, float, float]:
        """Return loss, top-1 and top-5 accuracy on the test images."""
        sums, looks = Sums(self.fabric.device), Looks(self.fabric, LOOK_EVERY)
        self.trainee.before_tests()
        several = self.fabric.world_size > 1
        (fewest,) = largest(self.fabric, -len(self.inputs.test))  # some processes may have a batch more
        with torch.no_grad():
            for number, (images, labels) in enumerate(self.inputs.test, 1):
                logits = self.trainee.scores(images)
                sums.add(cross_entropy(logits, labels), logits, labels)
                if several and (number > -fewest or not looks.step()):
                    continue
                (stop,) = looks.together(self._stop()) if several else (self._stop(),)
                if stop:
                    self.save()
                    raise self._stopped(stop)
        return Sums.means_of(summed(self.fabric, sums.totals))

    def check(self) -> None:
        """Look at what is about to be written.

        Raises:
            Diverged: There is a number in it that is none.
        """
        bad = self._losses.first_bad() or (0 if self.trainee.finite() else self.progress.step)
        (early,) = largest(self.fabric, earliness(bad))
        if early:
            raise self._diverged(earliness(early))

    def save(self) -> None:
        """Write a checkpoint.

        Raises:
            Diverged: There is a number in it that is none.
            RunFailed: It cannot be written.
        """
        self.check()
        self.write()

    def write(self) -> None:
        """Write a checkpoint of what `check` has looked at.

        Raises:
            RunFailed: It cannot be written.
        """
        under_way = self.progress.step > self.progress.epoch * len(self.inputs.train)
        content = {
            **self.trainee.state_dict(),
            "progress": self.progress.state_dict(),
            "seconds": self.seconds,
            "feed": self.inputs.train.state_dict() if under_way else None,
            "sums": summed(self.fabric, self.sums.totals).tolist(),
        }
        self._save(content, self.progress.step)
        self._saved, self._saved_step = time.monotonic(), self.progress.step

    def restore(self, content: dict[str, Any]) -> None:
        """Go to where a checkpoint was written."""
        self.trainee.load_state_dict(content)
        self.progress = Progress.from_state_dict(content["progress"])
        self._seconds, self._started = content["seconds"], time.monotonic()
        self._saved_step = self.progress.step
        if content["feed"] is not None:
            self.inputs.train.load_state_dict(content["feed"])
        if self.fabric.is_global_zero:  # the sums of all processes
            self.sums.totals += self.sums.totals.new_tensor(content["sums"])

    def _diverged(self, step: int) -> Diverged:
        epoch = (step - 1) // len(self.inputs.train) + 1
        kept = f"the checkpoint of step {self._saved_step} is kept" if self._saved_step else "nothing was saved before"
        return Diverged(
            f"the loss or a weight is NaN or infinite at step {step} (epoch {epoch}); {kept}; the same settings come "
            "here again: try a smaller --learning-rate, --warmup-epochs, or --clip-norm"
        )

    def _stopped(self, number: int) -> Stopped:
        epoch, batches = self.progress.epoch, len(self.inputs.train)
        return Stopped(number, f"stopped in epoch {epoch + 1} after {self.progress.step - epoch * batches} steps of it")


def earliness(step: int) -> int:
    """Return a number that is larger for an earlier step, and 0 for step 0, which is none; its own inverse."""
    return NEVER - step if step else 0
