"""How the cells of tables are written, and the beginnings of sentences."""

from __future__ import annotations

import math

from calibnorm.lab.experiments.statistics import Interval, Sample
from calibnorm.lab.experiments.summary import Line

NOTHING = "–"
ENDS = {"diverged": "NaN", "failed": "error", "missing": NOTHING, "busy": NOTHING}
"""What stands for the figure of a run that did not finish."""


def beginning(text: str) -> str:
    """Return a text as the beginning of a sentence.

    >>> beginning("test box AP of every run")
    'Test box AP of every run'
    """
    return text[0].upper() + text[1:]


def spread(mean: float, std: float | None = None, digits: int = 2) -> str:
    """Return a mean and its standard deviation.

    >>> spread(93.456, 0.2), spread(93.456), spread(float("nan"))
    ('93.46 ± 0.20', '93.46', '–')
    """
    if math.isnan(mean):
        return NOTHING
    return f"{mean:.{digits}f}" if std is None or math.isnan(std) else f"{mean:.{digits}f} ± {std:.{digits}f}"


def average(line: Line) -> str:
    """Return the mean of a line and its standard deviation."""
    return spread(line.own.mean, line.own.std, line.measure.digits)


def between(interval: Interval | None, sign: str = "", digits: int = 2) -> str:
    """Return an interval.

    >>> between(Interval(-0.5, 1.25), sign="+")
    '[-0.50, +1.25]'
    """
    if interval is None:
        return NOTHING
    return f"[{interval.low:{sign}.{digits}f}, {interval.high:{sign}.{digits}f}]"


def difference(line: Line, least: int = 2) -> str:
    """Return the mean difference from the baseline and its interval.

    Args:
        line: The cell.
        least: The interval is left out for fewer seeds: that of two seeds is 12.7 times as wide as they are apart.
    """
    of, digits = line.against or Sample({}), line.measure.digits
    if not of.values:
        return NOTHING
    interval = f" {between(of.interval(), '+', digits)}" if len(of.values) >= max(2, least) else ""
    return f"{of.mean:+.{digits}f}{interval}"


def wins(line: Line) -> str:
    """Return in how many seeds a column is better than the baseline."""
    return f"{line.wins} of {len(line.against.values)}" if line.against and line.against.values else NOTHING


def failures(line: Line) -> str:
    """Return what went wrong, and in how many runs."""
    parts = [(line.failed, "failed"), (line.at_chance, "at chance"), (line.missing, "missing")]
    wrong = ", ".join(f"{runs} {word}" for runs, word in parts if runs)
    return f"{wrong} of {len(line.outcomes)}" if wrong else "0"


def of_runs(count: int, line: Line) -> str:
    """Return a number of a line's runs."""
    return f"{count} of {len(line.outcomes)}" if count else "0"


def signed(value: float) -> str:
    """Return a difference with its sign.

    >>> signed(0.126), signed(float("nan"))
    ('+0.13', '–')
    """
    return NOTHING if math.isnan(value) else f"{value:+.2f}"


def every_seed(line: Line) -> str:
    """Return the figure of every seed, or the word for what became of the run."""
    digits = max(0, line.measure.digits - 1)
    return " ".join(
        f"{line.own.values[seed]:.{digits}f}" if seed in line.own.values else ENDS[outcome.state]
        for seed, outcome in line.outcomes.items()
    )
