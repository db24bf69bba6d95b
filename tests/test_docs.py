"""The documents run as written; the family page has a row for every method, and no cost that was not measured."""

from __future__ import annotations

import csv
import doctest
import json
import math
import re
import sys
from pathlib import Path

import pytest
import torch

import calibnorm as cn
from calibnorm.lab.recipes import RECIPES
from calibnorm.nn import layer_type
from lab.tasks import angles

ROOT = Path(__file__).parents[1]
LINES = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8").splitlines()
TABLE = [[cell.strip() for cell in line.strip("|").split("|")] for line in LINES if line.startswith("| `")]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GATES = ("center_weight", "scale_weight", "scale_bias")
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


def python_blocks(page: str) -> list[str]:
    """What a page shows as Python."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def test_the_readme_runs():
    blocks = python_blocks("README.md")
    said: list[str] = []
    names = {"print": said.append}
    for block in blocks:
        exec(block.replace("pretrained=True", "pretrained=False"), names)
    converted, fused = said
    assert converted.startswith("53 normalizations: 53 converted")
    assert "layer1.0.bn3: RBN2d, fused: norm + add + ReLU" in fused
    assert names["net"].train()(torch.randn(2, 3, 32, 32)).shape == (2, 1000)
    parameters = {name: p.numel() for name, p in names["net"].named_parameters()}
    gates = sum(count for name, count in parameters.items() if name.rpartition(".")[-1] in GATES)
    before, after = sum(parameters.values()) - gates, sum(parameters.values())
    (said_of_parameters,) = [line for line in README.splitlines() if line.startswith("| parameters |")]
    assert re.findall(r"[\d,]{6,}\b", said_of_parameters) == [f"{before:,}", f"{after:,}"]


PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
ELSEWHERE = {
    "README.md": "test_the_readme_runs",
    "docs/batch-noise.md": "test_the_page_of_the_meter_runs",
    "docs/models.md": "tests/lab/models/test_libraries.py",
    "docs/own-pictures.md": "tests/lab/classifier/test_session.py",
    "docs/register_a_method.md": "tests/nn/test_registering.py, and tests/lab/test_loading.py",
    "docs/tasks.md": "test_the_task_of_the_page_trains_and_is_compared",
}
"""Pages whose Python runs in a test of its own, which says more than that it runs."""
SHORTER = {'norm="iebn")': 'norm="iebn", epochs=1, train_images=96, batch_size=32)'}
"""What a test does not wait for."""


@pytest.mark.parametrize("page", [name for name in NAMES if python_blocks(name) and name not in ELSEWHERE])
def test_its_python_runs(page, tmp_path, monkeypatch):
    """As doctests where there are prompts; other blocks one after the other."""
    monkeypatch.chdir(tmp_path)
    blocks = python_blocks(page)
    names = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for block in blocks:
            if ">>>" not in block:
                for long, short in SHORTER.items():
                    block = block.replace(long, short)
                exec(block, names)
        if any(">>>" in block for block in blocks):
            flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
            result = doctest.testfile(str(ROOT / page), module_relative=False, optionflags=flags)
            assert result.failed == 0
            assert result.attempted >= sum(block.count(">>> ") - block.count("+SKIP") for block in blocks)


def test_the_page_of_the_meter_runs():
    said = []
    names = {"print": lambda *values: said.append(values)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for block in python_blocks("docs/batch-noise.md"):
            exec(block, names)
    (table,), (name, *shares), (against_theory,) = said
    assert [row.layer for row in table.table()] == ["1", "1", "(loss)", "(loss)", "(parameters)", "(parameters)"]
    assert name == "1"
    assert 0 < shares[1] < shares[0] < 1
    for line in against_theory:
        measured, expected = map(float, line.split(", expected "))
        assert measured == pytest.approx(expected, rel=0.1)


def test_compositions_of_the_family_page():
    block = next(b for b in re.findall(r"(?:^    .*\n)+", "\n".join(LINES), re.MULTILINE) if "over=" in b)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 1), torch.nn.BatchNorm2d(16))
    exec(re.sub("^    ", "", block, flags=re.MULTILINE), {"cn": cn, "model": net})
    assert net[1].options() == {"over": {"method": "gn", "groups": 8}}


def test_the_task_s_page_shows_the_file_that_the_tests_train():
    *parts, _, _ = python_blocks("docs/tasks.md")
    assert "\n\n".join(parts) == Path(angles.__file__).read_text(encoding="utf-8")


@pytest.mark.untraced
def test_the_task_of_the_page_trains_and_is_compared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "angles", angles)
    monkeypatch.setitem(RECIPES, "angles", None)
    exec(python_blocks("docs/tasks.md")[-1], {})
    figures = json.loads((tmp_path / "runs" / "angles" / "result.json").read_text(encoding="utf-8"))
    assert 0 < figures["test_angle_error"] < 1
    assert "angle error (rad)" in (tmp_path / "runs" / "compare" / "angles" / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    """Also that a heading which a link names is there."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://")):
            continue
        path, _, heading = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        if heading:
            heads = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads], target


def test_every_page_of_the_docs_is_linked_from_the_front():
    """From README or CONTRIBUTING, directly."""
    front = (ROOT / "README.md").read_text(encoding="utf-8") + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"docs/{page.name}" not in front] == []
