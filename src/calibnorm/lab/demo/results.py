"""From the history of all runs to the table's rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median, stdev

from calibnorm.lab.demo.config import CONDITIONS, VARIANTS, Condition, NormName
from calibnorm.lab.demo.training import Epoch


@dataclass(frozen=True)
class Row:
    """One norm in one condition.

    Args:
        condition: "clean" or "noise".
        norm: The norm's name.
        accuracies: Test accuracy after the last epoch, in percent, one a seed.
        differences: The same minus BN's with the same seed; empty for BN itself or where BN did not run.
        step_ms: Median over runs and epochs of the time a training step takes, in milliseconds.
        step_ratio: ``step_ms`` over BN's in the same condition; NaN where BN did not run.
        parameters: Learnable numbers of the network.
        diverged: Runs whose loss stopped being finite.
    """

    condition: Condition
    norm: NormName
    accuracies: tuple[float, ...]
    differences: tuple[float, ...]
    step_ms: float
    step_ratio: float
    parameters: int
    diverged: int

    @property
    def label(self) -> str:
        """The norm's name in tables and pictures."""
        return VARIANTS[self.norm].label

    @property
    def accuracy(self) -> float:
        """Mean test accuracy over seeds, in percent."""
        return mean(self.accuracies)

    @property
    def accuracy_std(self) -> float:
        """Standard deviation over seeds (n - 1); NaN for a single seed."""
        return stdev(self.accuracies) if len(self.accuracies) > 1 else math.nan


def summarize(
    history: Sequence[Epoch],
    parameters: Mapping[NormName, int],
    conditions: Sequence[Condition] = CONDITIONS,
) -> list[Row]:
    """Return the table's rows, by condition and then in the order in which the norms were named."""
    rows: list[Row] = []
    for condition in conditions:
        final = {norm: final_accuracies(history, condition, norm) for norm in parameters}
        step_ms = {norm: step_time(history, condition, norm) for norm in parameters}
        for norm in parameters:
            runs = [e for e in history if e.condition == condition and e.norm == norm]
            paired = "bn" in parameters and norm != "bn"
            rows.append(
                Row(
                    condition,
                    norm,
                    tuple(final[norm].values()),
                    tuple(final[norm][seed] - final["bn"][seed] for seed in final[norm]) if paired else (),
                    step_ms[norm],
                    step_ms[norm] / step_ms["bn"] if "bn" in parameters else math.nan,
                    parameters[norm],
                    len({e.seed for e in runs if not math.isfinite(e.train_loss)}),
                )
            )
    return rows


def final_accuracies(history: Sequence[Epoch], condition: Condition, norm: NormName) -> dict[int, float]:
    """Return the test accuracy after each seed's last epoch."""
    runs = [e for e in history if e.condition == condition and e.norm == norm]
    last = {e.seed: e for e in sorted(runs, key=lambda e: e.epoch)}
    return {seed: last[seed].test_accuracy for seed in sorted(last)}


def step_time(history: Sequence[Epoch], condition: Condition, norm: NormName) -> float:
    """Return the median over runs and epochs of the epochs' median step times; epochs without one are left out."""
    times = [e.step_ms for e in history if e.condition == condition and e.norm == norm]
    measured = [ms for ms in times if not math.isnan(ms)]
    return median(measured) if measured else math.nan


def half_interval(percent: float, images: int) -> float:
    """Return half the width of the 95 % Wilson interval of an accuracy measured on so many images, in points."""
    p, z = percent / 100, 1.96
    return 100 * z / (1 + z * z / images) * math.sqrt(p * (1 - p) / images + z * z / (4 * images * images))
