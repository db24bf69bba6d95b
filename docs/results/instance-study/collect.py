"""Add the study's finished runs to results.csv, and write and print what their seeds come to, summary.csv.

python docs/results/instance-study/collect.py [FOLDER]      the folder that the comparisons were written into

Rows of runs that FOLDER does not hold stay, so that the study goes on from any machine. What is read of a network is
kept in the folder of its run as readings.json: the same command goes on where it was stopped.
"""

from __future__ import annotations

import csv
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import calibnorm as cn
from calibnorm.lab import models
from calibnorm.lab.experiments.gates import measure
from calibnorm.lab.experiments.grid import condition_name
from calibnorm.lab.experiments.statistics import Sample
from calibnorm.lab.training.folder import read_recipe, read_result
from calibnorm.lab.training.trained import trained
from calibnorm.report.files import read_csv, read_json, write_csv, write_json

HERE, DATA = Path(__file__).parent, Path("data")
SIZES, PROBES, DRAWS = (8, 64), 16, 4
CONTROL = "bn:gamma_init=0.269"
RUN = ("condition", "norm", "seed")
Runs = dict[tuple[str, str, int], dict[str, Any]]
HELD = ("average_gates", "average_scale", "spread", "instance_share")
NOISE = ("own", "accumulated", "loss", "gradient")


def readings(folder: Path) -> dict[str, Any]:
    """Return what a run's network does: with its gates held, and its batch noise, averaged over the layers."""
    if (kept := read_json(folder / "readings.json")) is not None:
        return kept
    found: dict[str, Any] = dict.fromkeys(HELD)
    with trained(folder, DATA) as of:
        noise = cn.inspect.batch_noise(of.network.train(), of.feeds.test, PROBES, SIZES, DRAWS)
        plain = models.parse_norm(of.task.recipe.norm).method == "bn"
    for size in SIZES:
        for kind in ("own", "accumulated"):
            shares = [getattr(layer, kind)[size] for layer in noise.layers]
            found[f"{kind}_{size}"] = sum(shares) / len(shares)
        found |= {f"loss_{size}": noise.loss[size].value, f"gradient_{size}": noise.gradient[size].value}
    if not plain:
        held = asdict(measure(folder, DATA)[0])
        found |= {name: held[name] for name in HELD}
    write_json(folder / "readings.json", found)
    return found


def known() -> Runs:
    """Return the runs that results.csv holds."""
    runs: Runs = {}
    for row in read_csv(HERE / "results.csv"):
        numbers = {name: float(text) if text else None for name, text in row.items() if name not in RUN}
        runs[row["condition"], row["norm"], int(row["seed"])] = numbers
    return runs


def finished(root: Path) -> Runs:
    """Return the finished runs below a folder."""
    runs: Runs = {}
    for config in sorted(root.glob("*/*/*/seed*/config.json")):
        recipe, result = read_recipe(config.parent), read_result(config.parent)
        if recipe is not None and result is not None:
            condition = f"{condition_name(recipe.noise)}, batches of {recipe.batch_size}"
            figures = {name: result.figures[name] for name in ("train_loss", "test_accuracy")}
            runs[condition, recipe.norm, recipe.seed] = figures | readings(config.parent)
            print(f"read {config.parent}", file=sys.stderr)
    return runs


def summary(runs: Runs) -> list[dict[str, Any]]:
    """Return a row for every condition and norm: means over seeds, and accuracy minus the control's, paired by seed."""
    cells: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for (condition, norm, seed), figures in sorted(runs.items()):
        cells.setdefault((condition, norm), {})[seed] = figures
    lines = []
    for (condition, norm), of in cells.items():
        accuracy = Sample({seed: run["test_accuracy"] for seed, run in of.items()})
        control = cells.get((condition, CONTROL), {})
        less = accuracy.minus(Sample({seed: run["test_accuracy"] for seed, run in control.items()}))
        interval = less.interval() if norm != CONTROL and len(less.values) > 1 else None
        line = {"condition": condition, "norm": norm, "seeds": len(of), "accuracy": accuracy.mean}
        line |= {"std": accuracy.std, "each": " ".join(f"{value:.2f}" for value in accuracy.values.values())}
        line |= {"minus_control": less.mean if norm != CONTROL else None}
        line |= {"low95": interval and interval.low, "high95": interval and interval.high}
        for name in (*HELD, *(f"{kind}_{size}" for kind in NOISE for size in SIZES)):
            values = [run[name] for run in of.values() if run[name] is not None]
            line[name] = sum(values) / len(values) if values else None
        lines.append(line)
    return lines


def main() -> None:
    """Write both tables and print the second."""
    runs = known() | (finished(Path(sys.argv[1])) if len(sys.argv) > 1 else {})
    every = [dict(zip(RUN, run, strict=True)) | figures for run, figures in sorted(runs.items())]
    for name, table in (("results.csv", every), ("summary.csv", summary(runs))):
        texts = [{key: f"{v:.5g}" if isinstance(v, float) else v for key, v in row.items()} for row in table]
        write_csv(HERE / name, texts)
    with (HERE / "summary.csv").open() as file:
        for row in csv.reader(file):
            print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
