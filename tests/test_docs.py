"""The family page: a row for every method, and no cost that was not measured."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

import calibnorm as cn
from calibnorm.nn import layer_type

ROOT = Path(__file__).parents[1]
LINES = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8").splitlines()
TABLE = [[cell.strip() for cell in line.strip("|").split("|")] for line in LINES if line.startswith("| `")]
MEASURED = ROOT / "benchmarks" / "results" / "family" / "layer.csv"


def test_every_method_has_a_row_and_its_layer():
    assert [(row[0], row[1]) for row in TABLE] == [(f"`{m}`", f"`{layer_type(m).__name__}`") for m in cn.methods()]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row[0])
def test_costs_are_those_of_the_results(row):
    found: dict[int, list[float]] = {0: [], 1: [], 2: []}
    with MEASURED.open(encoding="utf-8") as file:
        for line in csv.DictReader(file):
            if line["mode"] == "forward+backward" and line["impl"] == f"cn.{row[1].strip('`')}":
                pixels = math.prod(int(size) for size in line["shape"].split("x")[2:])
                found[0 if pixels >= 14 * 14 else 1 if pixels >= 7 * 7 else 2].append(float(line["ratio_to_bn"]))
    means = [math.exp(sum(map(math.log, ratios)) / len(ratios)) for ratios in found.values()]
    assert row[-1] == " / ".join(f"{mean:.2f}" for mean in means)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [("bn", 2 * 64), ("iebn", 4 * 64), ("rbn", 5 * 64), ("sn", 2 * 64 + 6), ("bcn", 2 * 64 + 2 * 32)]
    + [("se", 2 * 64 + 2 * 64 * 4 + 64 + 4), ("an", 2 * 64 + 3 * 10 * 64 + 20), ("ilm", 2 * 64 + 3 * 4 * 2)]
    + [(name, 2 * 64) for name in ("in", "gn", "ln", "frn", "ghost", "brn")],
)
def test_parameters_are_as_many_as_the_page_says(name, numbers):
    assert sum(p.numel() for p in cn.norm_layer(name)(64).parameters()) == numbers
