"""Add a study's runs to results.csv, and print the tables of docs/fine-tuning.md.

python docs/results/fine-tuning/collect.py [FOLDER]      the folder that new comparisons were written into
"""

from __future__ import annotations

import csv
import json
import sys
from collections import defaultdict
from pathlib import Path

from calibnorm.lab.experiments.statistics import Sample

RESULTS = Path(__file__).parent / "results.csv"
RUN = ("data", "image_size", "train_images", "epochs", "highest_rate", "norm", "seed")
Runs = dict[tuple[str, ...], list[dict[str, str]]]


def known() -> Runs:
    """Return the epochs of every run that results.csv holds."""
    runs: Runs = defaultdict(list)
    with RESULTS.open() as file:
        for row in csv.DictReader(file):
            runs[tuple(row[name] for name in RUN)].append(row)
    return runs


def finished(root: Path) -> Runs:
    """Return the epochs of every finished run below a folder."""
    runs: Runs = {}
    for result in sorted(root.glob("*/*/*/seed*/result.json")):
        settings = json.loads((result.parent / "config.json").read_text())
        settings["image_size"] = settings["image_size"] or 96  # the data sets' own
        settings["highest_rate"] = settings["learning_rate"]  # metrics.csv has the rate of each epoch
        settings["norm"] = settings["norm"].replace("iebn:gate_input=standardized", "iebn")  # what preserve=True makes
        run = {name: str(settings[name]) for name in RUN}
        with (result.parent / "metrics.csv").open() as file:
            runs[tuple(run.values())] = [run | epoch for epoch in csv.DictReader(file)]
    return runs


def write(runs: Runs) -> None:
    """Write results.csv."""
    rows = [row for _, epochs in sorted(runs.items()) for row in epochs]
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def show(runs: Runs) -> None:
    """Print a table a condition: what was reached after the last epoch, and what it is above BatchNorm."""
    conditions: dict[tuple[str, ...], dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for (*condition, norm, seed), epochs in sorted(runs.items()):
        conditions[tuple(condition)][norm][int(seed)] = float(epochs[-1]["test_accuracy"])
    for condition, norms in conditions.items():
        print(f"\n{', '.join(map('='.join, zip(RUN, condition, strict=False)))}\n")
        print("| norm | test accuracy, % | each seed | minus BN, paired |\n|---|---|---|---|")
        for norm, sample in ((norm, Sample(seeds)) for norm, seeds in norms.items()):
            differences = sample.minus(Sample(norms["bn"]))
            interval = None if norm == "bn" else differences.interval()
            spread = f" ± {sample.std:.1f}" if len(sample.values) > 1 else ""
            paired = "" if interval is None else f"{differences.mean:+.1f} [{interval.low:+.1f}, {interval.high:+.1f}]"
            each = ", ".join(f"{value:.1f}" for value in sample.values.values())
            print(f"| `{norm}` | {sample.mean:.1f}{spread} | {each} | {paired} |")


if __name__ == "__main__":
    runs = known()
    if sys.argv[1:]:
        runs |= finished(Path(sys.argv[1]))
        write(runs)
    show(runs)
