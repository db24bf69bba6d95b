"""How numbers are written in tables, on the screen and in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from calibnorm.lab.experiments.outcomes import Outcome
from calibnorm.lab.experiments.statistics import Interval
from calibnorm.lab.experiments.summary import Line

NOTHING = "–"
WHOLE = ("accuracy (%)", "ours (%)", "paper (%)", "paper", "failed")
"""Columns that are never broken into lines."""
WORDS = {"diverged": "NaN", "failed": "error", "missing": NOTHING, "busy": NOTHING}


def spread(value: float, std: float | None) -> str:
    """Return a mean and its standard deviation.

    >>> spread(93.456, 0.2), spread(93.456, None), spread(float("nan"), None)
    ('93.46 ± 0.20', '93.46', '–')
    """
    if math.isnan(value):
        return NOTHING
    return f"{value:.2f}" if std is None or math.isnan(std) else f"{value:.2f} ± {std:.2f}"


def between(interval: Interval | None, signed: bool = False) -> str:
    """Return an interval.

    >>> between(Interval(-0.5, 1.25), signed=True)
    '[-0.50, +1.25]'
    """
    if interval is None:
        return NOTHING
    sign = "+" if signed else ""
    return f"[{interval.low:{sign}.2f}, {interval.high:{sign}.2f}]"


def difference(line: Line, factor: int = 1, least: int = 2) -> str:
    """Return the mean difference from the baseline and its interval.

    Args:
        line: The cell.
        factor: -1 turns a difference of accuracies into one of errors.
        least: The interval is left out for fewer seeds: that of two seeds is 12.7 times as wide as they are apart.
    """
    of = line.against
    if of is None or not of.differences:
        return NOTHING
    interval = of.interval if len(of.differences) >= least else None
    if interval is not None and factor < 0:
        interval = Interval(-interval.high, -interval.low)
    return f"{factor * of.mean:+.2f}" + (f" {between(interval, signed=True)}" if interval else "")


def wins(line: Line) -> str:
    """Return in how many seeds a column is better than the baseline."""
    of = line.against
    return NOTHING if of is None or not of.differences else f"{of.wins} of {len(of.differences)}"


def failures(line: Line) -> str:
    """Return what went wrong, and in how many runs.

    The words: failed (diverged, or an error), at chance (finished, at most twice the accuracy of guessing), missing.
    """
    parts = [(line.failed, "failed"), (line.at_chance, "at chance"), (line.missing, "missing")]
    said = ", ".join(f"{count} {word}" for count, word in parts if count)
    return f"{said} of {len(line.outcomes)}" if said else "0"


def each(line: Line, error: bool = False) -> str:
    """Return the accuracy, or the error, of every seed."""
    return " ".join(one(outcome, error) for outcome in line.outcomes.values())


def one(outcome: Outcome, error: bool = False) -> str:
    """Return a run's accuracy, or error, or the word for what became of it."""
    if not outcome.finished:
        return WORDS[outcome.state]
    return f"{100 - outcome.accuracy if error else outcome.accuracy:.1f}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """Return a Markdown table; the first ``left`` columns are aligned to the left."""
    lines = [f"| {' | '.join(header)} |", "|" + "|".join(["---"] * left + ["---:"] * (len(header) - left)) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def show(console: Console, title: str, header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> None:
    """Print a table; where the screen is narrow, intervals, names and lists are broken into lines, numbers are not."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for number, column in enumerate(header):
        justify: Literal["left", "right"] = "left" if number < left else "right"
        table.add_column(column, justify=justify, no_wrap=column in WHOLE, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table, "")


def bullets(sentences: Iterable[str]) -> str:
    """Return a Markdown list."""
    return "\n".join(f"- {sentence}" for sentence in sentences)


def epochs(count: int) -> str:
    """Return a number of epochs in words.

    >>> epochs(1), epochs(3)
    ('1 epoch', '3 epochs')
    """
    return f"{count} epoch{'s' if count != 1 else ''}"
