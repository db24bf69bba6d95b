"""What else a paper prints beside a table's numbers, ours beside it: parameters, top-5 errors, losses by an attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from calibnorm.lab.experiments import statistics, texts
from calibnorm.lab.experiments.summary import Line
from calibnorm.lab.experiments.tables.definitions import Table


@dataclass(frozen=True)
class Part:
    """A small table.

    Args:
        title: What it is about.
        header: Its columns.
        rows: As text.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def further(table: Table, lines: Sequence[Line]) -> list[Part]:
    """Return the parts that the paper has numbers for."""
    found = (parameters(table, lines), top5(table, lines), losses(table, lines))
    return [part for part in found if part.rows]


def parameters(table: Table, lines: Sequence[Line]) -> Part:
    """Return the networks' sizes; ours are those of the networks that were trained."""
    printed = {(e.row, e.column): e.printed.parameters for e in table.entries if e.printed is not None}
    rows = [
        [line.cell.row, line.cell.column, line.cell.recipe.model, size(line), f"{paper:.2f}"]
        for line in lines
        if (paper := printed.get((line.cell.row, line.cell.column))) is not None
    ]
    return Part("Parameters, millions", ["", "norm", "our network", "ours", "paper"], rows)


def size(line: Line) -> str:
    """Return a network's learnable numbers in millions."""
    return f"{line.parameters / 1e6:.2f}" if line.parameters else texts.NOTHING


def top5(table: Table, lines: Sequence[Line]) -> Part:
    """Return the top-5 errors."""
    printed = {(e.row, e.column): e.printed.top5 for e in table.entries if e.printed is not None}
    rows = []
    for line in lines:
        paper = printed.get((line.cell.row, line.cell.column))
        if paper is not None:
            errors = [100 - o.top5 for o in line.outcomes.values() if o.finished]
            ours = texts.spread(statistics.mean(errors), statistics.std(errors))
            rows.append([line.cell.row, line.cell.column, ours, f"{paper:.2f}"])
    return Part("Top-5 error", ["", "norm", "ours (%)", "paper (%)"], rows)


def losses(table: Table, lines: Sequence[Line]) -> Part:
    """Return the accuracy of every row minus that of the undisturbed one, paired by seed."""
    by_column = {line.cell.column: line for line in lines if line.cell.row == table.undisturbed}
    printed = {(e.row, e.column): e.printed.value for e in table.entries if e.printed is not None}
    rows = []
    for line in lines:
        row, column = line.cell.row, line.cell.column
        if column in by_column and row != table.undisturbed:
            gap = statistics.paired(line.accuracies, by_column[column].accuracies)
            ours = f"{gap.mean:+.2f}" if gap.differences else texts.NOTHING
            own, base = printed.get((row, column)), printed.get((str(table.undisturbed), column))
            paper = texts.NOTHING if own is None or base is None else f"{own - base:+.2f}"
            rows.append([row, column, ours, paper])
    return Part(f"Accuracy minus that of {table.undisturbed}", ["", "norm", "ours", "paper"], rows)
