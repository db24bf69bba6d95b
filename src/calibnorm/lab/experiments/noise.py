"""The batch noise of runs: of their trained networks, layer by layer and by batch size, and over training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from statistics import fmean
from typing import Any

import calibnorm as cn
from calibnorm.lab.experiments.grid import Grid, Run
from calibnorm.lab.training.noise import Reading, readings
from calibnorm.lab.training.trained import Trained
from calibnorm.report import pictures
from calibnorm.report.document import Bullets, Paragraph, Picture, Section, Table
from calibnorm.report.pictures import Point

Rows = list[dict[str, Any]]
"""Lines of `cn.inspect.batch_noise` as mappings, with the condition and the norm of their run."""
Runs = Iterable[tuple[str, str, Run]]
"""With the condition and the norm of each."""

SIZES, PROBES, DRAWS = (4, 16, 64), 16, 4
"""Of a trained network's reading: 5376 images forward, and a batch of the pool's 256."""
SHARE = "share of the variance"
ENDS = ("", "_low", "_high")
KINDS = {"own": "of the layer alone", "accumulated": "of all layers so far"}
EXPLAINED = (
    "The share of a layer's output, in its variance from batch to batch and from image to image, that is the doing of "
    "the other images in the batch: 0 is none of it. Networks compute as in training, on test images."
)


def read(of: Trained, condition: str, norm: str) -> Rows:
    """Return the batch noise of a trained network's layers and of its loss, on test images.

    It is empty where the meter cannot look: at batches that do not begin with images, or a network without norms.
    """
    network = of.network.train()
    try:
        found = cn.inspect.batch_noise(network, of.feeds.test, PROBES, SIZES, DRAWS, gradients=False)
    except (TypeError, ValueError):
        return []
    finally:
        network.eval()
    return [{"condition": condition, "norm": norm} | row for row in found.to_dicts()]


def sections(rows: Rows, about: str) -> list[Section]:
    """Return the noise of trained networks by layer and by batch size, drawn and in numbers.

    Args:
        rows: What `read` returned, of one network or of several.
        about: Whose networks these are, in a sentence.
    """
    columns: dict[str, dict[str, dict[str, list[Point]]]] = {}
    one = len({(row["condition"], row["norm"]) for row in rows}) == 1
    for row in rows:
        size = f"batches of {row['batch_size']}"
        for kind, title in KINDS.items() if row["depth"] else ():
            column, label, name = (title, SHARE, size) if one else (row["condition"], f"{SHARE}: {size}", row["norm"])
            if one or kind == "accumulated":
                point = Point(row["depth"], row[kind], row[f"{kind}_low"], row[f"{kind}_high"])
                columns.setdefault(column, {}).setdefault(label, {}).setdefault(name, []).append(point)
    which = "" if one else " Lines are about all layers so far; the noise of a layer alone is in the table."
    draw = partial(pictures.bands, columns, "norm layer, from input to output")
    picture = Picture("noise.png", "Batch noise by layer and batch size", draw)
    text = f"{EXPLAINED}{which} {about} Bands are 95 % intervals."
    shown = ("condition", "norm", "layer", "batch_size", *(f"{kind}{end}" for kind in KINDS for end in ENDS))
    table = Table.of([{name: row[name] for name in shown} for row in rows], left=3, digits=3)
    return [
        Section("Batch noise by layer", [Paragraph(text), picture] if rows else [], on="file"),
        Section("Batch noise of the loss", [Bullets([*sentences(rows)])]),
        Section("Batch noise in numbers", [table], on="page", folded=True),
    ]


def sentences(rows: Rows) -> Iterator[str]:
    """Yield a sentence for every network that has a loss: how much of it is the company's doing, by batch size."""
    networks: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["layer"] == "(loss)":
            networks.setdefault((row["condition"], row["norm"]), []).append(row)
    for (condition, norm), of in networks.items():
        shares = "; ".join(
            f"{100 * row['accumulated']:.2g} % in batches of {row['batch_size']} "
            f"({100 * row['accumulated_low']:.2g} to {100 * row['accumulated_high']:.2g})"
            for row in of
        )
        yield f"{condition}, {norm}: of the variance of an image's loss, the other images make {shares}."


def over_training(runs: Runs) -> list[Section]:
    """Return what the runs measured while they trained, each in batches of its own size; nothing where none did."""
    columns: dict[str, dict[str, dict[str, list[list[tuple[float, float]]]]]] = {}
    rows: Rows = []
    for condition, norm, run in runs:
        found = readings(run.folder)
        for label, curve in curves(found).items():
            columns.setdefault(condition, {}).setdefault(label, {}).setdefault(norm, []).append(curve)
        rows += [{"condition": condition, "norm": norm, "seed": run.recipe.seed} | row for row in quarters(found)]
    explained = (
        f"{EXPLAINED} It was measured during training, in batches of the run's own size, and written into noise.csv. "
        "One reading is rough. Lines are means over layers and seeds, bands reach from the least seed to the greatest."
    )
    picture = Picture("noise_over_steps.png", "Batch noise over training", partial(pictures.curves, columns, "step"))
    title = "Batch noise by layer, early and late in training"
    return [
        Section("Batch noise over training", [Paragraph(explained), picture] if columns else [], on="file"),
        Section(title, [Table.of(rows, left=4, digits=3)], on="page", folded=True),
    ]


def of_grid(grid: Grid) -> Runs:
    """Return the runs of a grid, as `over_training` takes them."""
    return ((cell.row, cell.column, grid.run(cell, seed)) for cell in grid.cells for seed in grid.seeds)


def curves(found: Iterable[Reading]) -> dict[str, list[tuple[float, float]]]:
    """Return the means over layers by step, by label of the axis: own, accumulated, and the loss."""
    at: dict[str, dict[int, list[float]]] = {}
    for reading in found:
        loss = reading.layer == "(loss)"
        for kind in ("accumulated",) if loss else KINDS:
            label = f"{SHARE}: {'of the loss' if loss else KINDS[kind]}"
            at.setdefault(label, {}).setdefault(reading.step, []).append(getattr(reading, kind))
    return {label: [(step, fmean(shares)) for step, shares in of.items()] for label, of in at.items()}


def quarters(found: Iterable[Reading]) -> Rows:
    """Return, for every layer, the means over the first quarter of a run's readings and over the last."""
    layers: dict[str, list[Reading]] = {}
    for reading in found:
        layers.setdefault(reading.layer, []).append(reading)
    rows: Rows = []
    for layer, of in layers.items():
        count = -(-len(of) // 4)
        row: dict[str, Any] = {"layer": layer, "batch_size": of[0].batch_size}
        for kind in KINDS:
            for part, name in ((of[:count], "first quarter"), (of[-count:], "last quarter")):
                shares = [share for each in part if (share := getattr(each, kind)) is not None]
                row[f"{kind}, {name}"] = fmean(shares) if shares else None
        rows.append(row)
    return rows
