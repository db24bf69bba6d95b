"""What a number of a run is: its name, its unit, and which way is better."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


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
        may_lack: Whether NaN means that there was nothing to measure, such as objects of a size.
        words: The name in words, where it is not the name without underscores.
    """

    name: str
    unit: str = ""
    digits: int = 2
    higher_is_better: bool = False
    chance: float = math.nan
    chance_means: str = ""
    in_line: bool = True
    in_result: bool = True
    may_lack: bool = False
    words: str = ""

    @property
    def label(self) -> str:
        """The name in words.

        >>> Measure("test_accuracy", "%").label, Measure("test_box_ap", "%", words="test box AP").label
        ('test accuracy', 'test box AP')
        """
        return self.words or self.name.replace("_", " ")

    @property
    def label_with_unit(self) -> str:
        """The label of an axis or a column.

        >>> Measure("test_accuracy", "%").label_with_unit
        'test accuracy (%)'
        """
        return f"{self.label} ({self.unit})" if self.unit else self.label

    @property
    def column(self) -> str:
        """The head of a table's column, which leaves out that all its figures are those of the test.

        >>> Measure("test_accuracy", "%").column
        'accuracy (%)'
        """
        return self.label_with_unit.removeprefix("test ")

    @property
    def plural(self) -> str:
        """The name in words for several of them, again without the test.

        >>> Measure("test_accuracy").plural, Measure("test_word_error").plural, Measure("test_loss").plural
        ('accuracies', 'word errors', 'losses')
        """
        word = self.label.removeprefix("test ")
        return f"{word[:-1]}ies" if word.endswith("y") else f"{word}{'es' if word.endswith('s') else 's'}"

    @property
    def error(self) -> Measure | None:
        """What an accuracy leaves of 100 %, another way to show the same figure; None of any other measure."""
        if not self.name.endswith("accuracy"):
            return None
        name = self.name.replace("accuracy", "error")
        return replace(self, name=name, higher_is_better=not self.higher_is_better, chance=100 - self.chance)

    def text(self, value: float, digits: int | None = None) -> str:
        """Return a value as it is written, with as many digits behind the point as the measure has, or others.

        >>> Measure("test_accuracy", "%").text(98.5), Measure("train_loss", digits=4).text(0.5, 3)
        ('98.50 %', '0.500')
        """
        return f"{value:.{self.digits if digits is None else digits}f} {self.unit}".rstrip()

    def better(self, value: float, other: float) -> bool:
        """Return whether a value is better than another; NaN never is."""
        return value > other if self.higher_is_better else value < other

    @property
    def chance_in_words(self) -> str:
        """Which final values have learned next to nothing, such as "at most twice the accuracy of guessing".

        It is empty where that is not known.
        """
        if math.isnan(self.chance):
            return ""
        return f"at {'most' if self.higher_is_better else 'least'} {self.chance_means}"

    def at_chance(self, value: float) -> bool:
        """Return whether a final value is no better than `chance`; False where that is not known."""
        return value <= self.chance if self.higher_is_better else value >= self.chance
