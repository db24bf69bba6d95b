"""Rows as text: the columns are aligned, and numbers stand to the right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def aligned(head: Sequence[str], rows: Iterable[Sequence[object]], totals: Sequence[object] | None = None) -> str:
    """Return a table as text, with a rule below the head and another above the totals, if there are any.

    Args:
        head: The names of the columns.
        rows: The cells of every row; None is an empty cell, and a float is shown with four digits.
        totals: The cells of the last line.

    >>> print(aligned(("layer", "mean"), [("bn1", 0.25), ("bn2", None)]))
    layer  mean
    -----------
    bn1    0.25
    bn2
    """
    body = [*rows, *([] if totals is None else [totals])]
    numeric = [any(isinstance(row[i], int | float) for row in body) for i in range(len(head))]
    table = [head, *([_text(cell) for cell in row] for row in body)]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in table
    ]
    rule = "-" * max(map(len, lines))
    lines.insert(1, rule)
    if totals is not None:
        lines.insert(-1, rule)
    return "\n".join(lines)


def _text(cell: object) -> str:
    if cell is None:
        return ""
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
