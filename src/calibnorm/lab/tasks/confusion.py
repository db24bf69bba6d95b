"""Which classes a trained network tells apart: by class, by pairs that it confuses, and as a matrix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from calibnorm.lab.data import ImageBatch
from calibnorm.report import pictures
from calibnorm.report.document import Paragraph, Picture, Section, Table

PAIRS = 10
"""So many pairs are shown."""
DRAWN, UNFOLDED = 40, 20
"""More classes than these are not drawn, and their table is folded."""
Network = Any


@torch.no_grad()
def counted(network: Network, batches: Iterable[ImageBatch], classes: int) -> Tensor:
    """Return how many images of each class, a row, a network takes for each, a column: (classes, classes) in int64."""
    found = torch.zeros(classes * classes, dtype=torch.int64)
    for images, labels in batches:
        answers = network(images)[:, :classes].argmax(1)
        found += torch.bincount((labels * classes + answers).cpu(), minlength=classes * classes)
    return found.view(classes, classes)


def by_class(counts: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return a line for every class: its accuracy, and how many of those that are taken for it are of it.

    >>> by_class(torch.tensor([[3, 1], [0, 1]]), ["cat", "dog"])[1]
    {'class': 'dog', 'images': 1, 'right': 1, 'accuracy': 100.0, 'precision': 50.0, 'most confused with': ''}
    """
    lines = []
    for number, name in enumerate(names):
        row, column = counts[number], counts[:, number]
        images, right, answers = int(row.sum()), int(row[number]), int(column.sum())
        wrong = row.clone()
        wrong[number] = 0
        lines.append(
            {
                "class": name,
                "images": images,
                "right": right,
                "accuracy": 100 * right / images if images else None,
                "precision": 100 * right / answers if answers else None,
                "most confused with": names[int(wrong.argmax())] if int(wrong.sum()) else "",
            }
        )
    return lines


def pairs(counts: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the pairs of a class and what its images are taken for instead, the most frequent first."""
    wrong = counts - counts.diag().diag()
    order = wrong.flatten().argsort(descending=True, stable=True)[:PAIRS].tolist()
    places = [divmod(place, len(names)) for place in order]
    of = [(int(counts[row].sum()), int(wrong[row, column])) for row, column in places]
    return [
        {"class": names[row], "taken for": names[column], "images": f"{count} of {images}"}
        for (row, column), (images, count) in zip(places, of, strict=True)
        if count
    ]


def matrix(counts: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return a line for every class, with a column for each that its images are taken for."""
    rows = zip(names, counts.tolist(), strict=True)
    return [{"class of the image": name, **dict(zip(names, row, strict=True))} for name, row in rows]


def sections(counts: Tensor, names: Sequence[str]) -> list[Section]:
    """Return what is said of classes on a page."""
    lines, confused = by_class(counts, names), pairs(counts, names)
    shown = [{**line, **{key: _percent(line[key]) for key in ("accuracy", "precision")}} for line in lines]
    text = (
        f"Of {int(counts.sum())} test images, {int(counts.diag().sum())} are recognized. Accuracy is the share of a "
        "class's images that are taken for it, precision the share of the images taken for it that are of it (%). "
        "`classes.csv` and `confusion.csv` have all numbers."
    )
    many = len(names) > UNFOLDED
    found = [Section("Accuracy by class", [Paragraph(text), Table.of(shown)], folded=many, on="page" if many else None)]
    if confused:
        blocks: list[Any] = [Table.of(confused, left=2)]
        if len(names) <= DRAWN:
            shares = (counts / counts.sum(1, keepdim=True).clamp(min=1)).tolist()
            draw = partial(pictures.matrix, names, shares, "class that it is taken for", "class of the image")
            blocks.append(Picture("confusion.png", "What the test images of each class are taken for", draw))
        found.append(Section("Classes that are confused", blocks))
    return found


def tables(counts: Tensor, names: Sequence[str]) -> Mapping[str, list[dict[str, Any]]]:
    """Return what lies beside the page, by file."""
    return {"classes.csv": by_class(counts, names), "confusion.csv": matrix(counts, names)}


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f}"
