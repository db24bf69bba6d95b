"""What a few seeds can say: means, intervals, and differences paired by seed.

Seeds are few, so every interval is Student's t. It assumes that the values of the seeds are independent and roughly
normal. That fails where some runs train and others stay at chance; the tables show every seed for that reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from scipy.special import stdtrit  # scipy.stats takes seconds to import, and all of it that is needed is this


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Return whether a value is in it; its ends are."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Sample:
    """A figure of several runs.

    Args:
        values: By seed.

    >>> sample = Sample({0: 1.0, 1: 2.0, 2: 3.0})
    >>> sample.mean, sample.std, sample.interval()  # t(2) = 4.303
    (2.0, 1.0, Interval(low=-0.484..., high=4.484...))
    """

    values: Mapping[int, float]

    @property
    def mean(self) -> float:
        """The arithmetic mean; NaN for no values."""
        return math.fsum(self.values.values()) / len(self.values) if self.values else math.nan

    @property
    def std(self) -> float:
        """The sample standard deviation, ``sqrt(sum (x - mean)^2 / (n - 1))``; NaN for fewer than two values."""
        if len(self.values) < 2:
            return math.nan
        mean = self.mean
        return math.sqrt(math.fsum((value - mean) ** 2 for value in self.values.values()) / (len(self.values) - 1))

    def interval(self, confidence: float = 0.95) -> Interval | None:
        """Return Student's confidence interval of the mean, ``mean ± t(n - 1) * std / sqrt(n)``.

        Args:
            confidence: Between 0 and 1.

        Returns:
            None for fewer than two values, which say nothing about their spread. Two values give an interval, with
            t = 12.7 at 95 % a very wide one.
        """
        count = len(self.values)
        if count < 2:
            return None
        half = float(stdtrit(count - 1, (1 + confidence) / 2)) * self.std / math.sqrt(count)
        return Interval(self.mean - half, self.mean + half)

    def minus(self, baseline: Sample) -> Sample:
        """Return the differences, seed by seed; their interval is the paired t interval.

        Runs of one seed share initial weights and batches, so a difference leaves out what the seed itself brings. The
        interval assumes that the differences, not the values, are independent from seed to seed and roughly normal.

        Args:
            baseline: What is subtracted; seeds that only one of the two has are left out.
        """
        of = baseline.values
        return Sample({seed: value - of[seed] for seed, value in self.values.items() if seed in of})

    def mapped(self, function: Callable[[float], float]) -> Sample:
        """Return the sample with every value replaced."""
        return Sample({seed: function(value) for seed, value in self.values.items()})

    def count(self, holds: Callable[[float], bool]) -> int:
        """Return for how many values something holds."""
        return sum(map(holds, self.values.values()))
