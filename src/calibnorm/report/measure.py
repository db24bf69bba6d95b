"""What a number of a run is: its name, its unit, and which way is better."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """One named figure of a run.

    Args:
        name: As metrics.csv, result.json and `figures` name it, such as "test_accuracy".
        unit: Such as "%"; nothing for a pure number.
        digits: Behind the point.
        higher_is_better: Whether a larger value is a better one.
        chance: For the figure that compares runs: a final value that is no better than this has learned next to
            nothing; NaN where that is not known.
        chance_means: What ``chance`` is, in words that follow "at most" or "at least", such as "twice the accuracy
            of guessing".
        in_line: Whether the line that a run prints after an epoch shows it.
        in_result: Whether result.json holds the last epoch's.
    """

    name: str
    unit: str = ""
    digits: int = 2
    higher_is_better: bool = False
    chance: float = math.nan
    chance_means: str = ""
    in_line: bool = True
    in_result: bool = True

    @property
    def label(self) -> str:
        """The name in words.

        >>> Measure("test_accuracy", "%").label
        'test accuracy'
        """
        return self.name.replace("_", " ")

    @property
    def label_with_unit(self) -> str:
        """The label of an axis or a column.

        >>> Measure("test_accuracy", "%").label_with_unit
        'test accuracy (%)'
        """
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def text(self, value: float, digits: int | None = None) -> str:
        """Return a value as it is written, with as many digits behind the point as the measure has, or others.

        >>> Measure("test_accuracy", "%").text(98.5), Measure("train_loss", digits=4).text(0.5, 3)
        ('98.50 %', '0.500')
        """
        return f"{value:.{self.digits if digits is None else digits}f} {self.unit}".rstrip()

    def better(self, value: float, other: float) -> bool:
        """Return whether a value is better than another; NaN never is."""
        return value > other if self.higher_is_better else value < other

    def at_chance(self, value: float) -> bool:
        """Return whether a final value is no better than `chance`; False where that is not known."""
        return value <= self.chance if self.higher_is_better else value >= self.chance
