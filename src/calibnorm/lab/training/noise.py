"""The batch noise of a network while it trains."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn

import calibnorm as cn
from calibnorm.errors import Setting, UsageError
from calibnorm.inspect.company import Pool
from calibnorm.lab.data.feed import Feed
from calibnorm.lab.training.folder import NOISE
from calibnorm.lab.training.watchers import Watcher
from calibnorm.report.files import read_csv, write_csv

PROBES, DRAWS, POOL = 8, 2, 128
"""Of a reading: 16 forwards of a batch, and a batch of 128. One alone is rough, and a run has many."""

COLUMNS = (
    "step",
    "layer",
    "depth",
    "batch_size",
    *(f"{of}{end}" for of in ("own", "accumulated") for end in ("", "_low", "_high")),
)


@dataclass(frozen=True)
class Reading:
    """A line of noise.csv, without its intervals.

    Args:
        step: After which it was read.
        layer: The layer's name, or "(loss)".
        batch_size: Images in a batch.
        own: The share of the layer's output where it alone sees new company; None for the loss.
        accumulated: The share where the whole network sees it.
    """

    step: int
    layer: str
    batch_size: int
    own: float | None
    accumulated: float


def readings(folder: Path) -> list[Reading]:
    """Return what a run measured while it trained; nothing where it did not measure.

    Raises:
        UsageError: Something else is in the file.
    """
    try:
        return [
            Reading(
                int(row["step"]),
                row["layer"],
                int(row["batch_size"]),
                float(row["own"]) if row["own"] else None,
                float(row["accumulated"]),
            )
            for row in read_csv(folder / NOISE)
        ]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UsageError(f"{folder / NOISE}: is damaged; remove it, and the page is made without it") from error


class NoiseWatch(Watcher):
    """Measures the batch noise every so many steps, and writes it into noise.csv of the run's folder.

    The readings change nothing of the run, and are the same however often it is stopped and started again: those of
    steps that are done again are written again. Images are test images, in float32.

    Args:
        folder: The run's.
        every: Steps between two readings.
        batch_size: Images in a batch.
        show: Takes numbers by name, and the step; for TensorBoard.
    """

    def __init__(
        self, folder: Path, every: int, batch_size: int, show: Callable[[dict[str, float], int], None] | None = None
    ) -> None:
        self.path, self.every, self.batch_size, self.show = folder / NOISE, every, batch_size, show
        self._before = 0

    def meet(self, network: nn.Module, test: Feed[Any]) -> None:
        if dist.is_initialized() and dist.get_world_size() > 1:
            raise UsageError(Setting("noise_every"), "measures in one process, and this run has several; leave it out")
        try:
            pool = Pool.read(test, POOL, 0, None)
        except TypeError as error:
            raise UsageError(Setting("noise_every"), f"cannot be measured here: {error}") from error
        self._network = network
        self._images = pool.batches()

    def begin(self, epoch: int, batches: int, done: int) -> None:
        self._before = (epoch - 1) * batches
        self._forget_after(self._before + done)

    def step(self, done: int, figures: object) -> None:
        step = self._before + done
        if step % self.every:
            return
        sizes = (self.batch_size,)
        noise = cn.inspect.batch_noise(self._network, self._images, PROBES, sizes, DRAWS, gradients=False, pool=POOL)
        rows = noise.to_dicts()
        with self.path.open("a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
            writer.writerows({"step": step, **row} for row in rows)
        if self.show is not None:
            names = [(row, of) for row in rows for of in ("own", "accumulated") if row[of] is not None]
            self.show({f"batch noise, {of}/{row['layer']}": row[of] for row, of in names}, step)

    def _forget_after(self, step: int) -> None:
        """Keep the readings of the steps that are done, without a line that was half written."""
        rows = [row for row in read_csv(self.path) if None not in row.values() and int(row["step"]) <= step]
        write_csv(self.path, rows, COLUMNS)
