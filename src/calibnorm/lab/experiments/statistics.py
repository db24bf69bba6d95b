"""What a few seeds can say: means, intervals, and differences paired by seed.

Seeds are few, so every interval is Student's t. It assumes that the values of the seeds are independent and roughly
normal. That fails where some runs train and others stay at chance; the tables show every seed for that reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from scipy.special import stdtrit  # scipy.stats takes seconds to import, and all of it that is needed is this

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A confidence interval."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean, NaN for no values.

    >>> mean([1.0, 2.0, 6.0])
    3.0
    """
    return math.fsum(values) / len(values) if values else math.nan


def std(values: Sequence[float]) -> float:
    """Return the sample standard deviation, ``sqrt(sum (x - mean)^2 / (n - 1))``; NaN for fewer than two values.

    >>> std([1.0, 2.0, 3.0])
    1.0
    """
    if len(values) < 2:
        return math.nan
    middle = mean(values)
    return math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1))


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval | None:
    """Return Student's confidence interval of the mean, ``mean ± t(n - 1) * std / sqrt(n)``.

    Args:
        values: One a seed.
        confidence: Between 0 and 1.

    Returns:
        None for fewer than two values, which say nothing about their spread. Two values give an interval, with t = 12.7
        at 95 % a very wide one.

    >>> interval([1.0, 2.0, 3.0])  # t(2) = 4.303
    Interval(low=-0.484..., high=4.484...)
    """
    if len(values) < 2:
        return None
    half = float(stdtrit(len(values) - 1, (1 + confidence) / 2)) * std(values) / math.sqrt(len(values))
    return Interval(mean(values) - half, mean(values) + half)


@dataclass(frozen=True)
class Sample:
    """A figure of several runs.

    Args:
        values: By seed.
    """

    values: Mapping[int, float]

    @property
    def mean(self) -> float:
        """The arithmetic mean; NaN for no values."""
        return mean(self._all)

    @property
    def std(self) -> float:
        """The sample standard deviation; NaN for fewer than two values."""
        return std(self._all)

    @property
    def interval(self) -> Interval | None:
        """The 95 % interval of the mean; None for fewer than two values."""
        return interval(self._all)

    @property
    def above(self) -> int:
        """How many values are more than 0."""
        return sum(value > 0 for value in self._all)

    @property
    def below(self) -> int:
        """How many values are less than 0."""
        return sum(value < 0 for value in self._all)

    @property
    def _all(self) -> list[float]:
        return list(self.values.values())

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
