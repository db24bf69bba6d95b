"""Gather a study's runs into results.csv, and print the tables of docs/fine-tuning.md.

python docs/results/fine-tuning/collect.py FOLDER      the folder that the comparisons of the page were written into
"""

from __future__ import annotations

import csv
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from calibnorm.lab.experiments.statistics import Sample

HERE = Path(__file__).parent


def rows(root: Path) -> list[dict[str, Any]]:
    """Return a row for every epoch of every finished run."""
    found: list[dict[str, Any]] = []
    for config in sorted(root.glob("*/*/*/seed*/config.json")):
        settings = json.loads(config.read_text())
        if not (config.parent / "result.json").exists():
            continue
        norm = settings["norm"].replace("init=(0,3),gate_input=standardized", "gate_input=standardized,init=(0,3)")
        if (
            norm.startswith("iebn") and "gate_input" not in norm
        ):  # of the days when preserve=True left the paper's input
            norm = norm.replace("iebn", "iebn:gate_input=mean", 1).replace("mean:", "mean,")
        norm = norm.replace("iebn:gate_input=standardized", "iebn").replace("iebn,", "iebn:")
        run = {name: settings[name] for name in ("data", "image_size", "seed")} | {"norm": norm}
        run["highest_rate"] = settings["learning_rate"]  # metrics.csv has the rate of each epoch
        with (config.parent / "metrics.csv").open() as file:
            found += [run | epoch for epoch in csv.DictReader(file)]
    return found


def main() -> None:
    """Write results.csv and print."""
    found = rows(Path(sys.argv[1]))
    with (HERE / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, found[0].keys())
        writer.writeheader()
        writer.writerows(found)
    last: dict[tuple[Any, ...], dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in found:  # the last epoch stays
        last[row["data"], row["image_size"] or 96, row["highest_rate"]][row["norm"]][row["seed"]] = float(
            row["test_accuracy"]
        )
    for condition, norms in sorted(last.items(), key=str):
        print(f"\n{condition}\n\n| norm | test accuracy, % | each seed | minus BN, paired |\n|---|---|---|---|")
        for norm, sample in ((norm, Sample(seeds)) for norm, seeds in norms.items()):
            differences = sample.minus(Sample(norms["bn"]))
            interval = None if norm == "bn" else differences.interval()
            spread = f" ± {sample.std:.1f}" if len(sample.values) > 1 else ""
            paired = "" if interval is None else f"{differences.mean:+.1f} [{interval.low:+.1f}, {interval.high:+.1f}]"
            each = ", ".join(f"{value:.1f}" for value in sample.values.values())
            print(f"| `{norm}` | {sample.mean:.1f}{spread} | {each} | {paired} |")


if __name__ == "__main__":
    main()
