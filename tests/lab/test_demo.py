"""`calibnorm demo`: what it trains, what it writes, and what it concludes."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch
from PIL import Image
from rich.console import Console

import calibnorm as cn
from calibnorm.lab import demo, models, tasks
from calibnorm.lab.demo import CONTROL, SMALL_RBN, DemoConfig, Demonstration
from calibnorm.lab.experiments import layers
from calibnorm.lab.experiments.compare import plan
from calibnorm.lab.experiments.outcomes import Outcome
from calibnorm.lab.experiments.statistics import Sample
from calibnorm.lab.experiments.summary import Line
from calibnorm.lab.recipes import recipe
from calibnorm.lab.training.folder import Result, read_result
from calibnorm.lab.training.trained import trained

SMALL = {"model": "resnet11", "epochs": 1}
NORMS = ("bn", CONTROL, "iebn", "rbn")


@dataclass
class Demo:
    config: DemoConfig
    screen: str

    @property
    def root(self) -> Path:
        return self.config.out / "demo"

    def rows(self, name: str) -> list[dict[str, str]]:
        with (self.root / name).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    config = DemoConfig(out=tmp_path_factory.mktemp("demo"), norms=NORMS, seeds=2, jobs=0, override=SMALL)
    screen = StringIO()
    assert demo.run(config, Console(file=screen, width=80)) == 0
    return Demo(config, screen.getvalue())


def test_writes_everything(shown: Demo) -> None:
    files = {path.name for path in shown.root.iterdir() if path.is_file()}
    pictures = {"accuracies.png", "curves.png", "gates.png"}
    assert files >= {"report.md", "results.csv", "summary.csv", "gates.csv", "grid.json"} | pictures
    text = (shown.root / "report.md").read_text(encoding="utf-8")
    for name in pictures:
        with Image.open(shown.root / name) as image:
            assert min(image.size) > 300
        assert f"({name})" in text


def test_table_equals_the_runs(shown: Demo) -> None:
    text = (shown.root / "report.md").read_text(encoding="utf-8")
    assert sum("better in" in line for line in text.splitlines()) == 1
    for row in shown.rows("summary.csv"):
        folder = shown.root / ("clean" if row["row"] == "clean" else "noise_0.8,0.5")
        (place,) = {Path(r["folder"]).parent.name for r in shown.rows("results.csv") if r["column"] == row["column"]}
        results = [read_result(folder / place / f"seed{seed}") for seed in (0, 1)]
        values = [result.figures["test_accuracy"] for result in results if result is not None]
        spread = f"{mean(values):.2f} ± {stdev(values):.2f}"
        assert float(row["mean"]) == pytest.approx(mean(values), abs=1e-4)
        assert spread in re.sub(r"\s+", " ", shown.screen)


def test_gates_are_those_of_the_first_seeds_networks(shown: Demo) -> None:
    rows = shown.rows("gates.csv")
    assert {row["norm"] for row in rows} == {"iebn", "rbn"}  # BatchNorm has none, whatever it starts with
    with trained(shown.root / "clean" / "iebn" / "seed0", Path("data")) as of:
        gates = cn.inspect.gates(of.network, of.feeds.test)
    written = [row for row in rows if (row["condition"], row["norm"], row["quantity"]) == ("clean", "iebn", "gate")]
    assert [row["layer"] for row in written] == [gate.layer for gate in gates]
    for row, gate in zip(written, gates, strict=True):
        assert float(row["mean"]) == pytest.approx(gate.mean, rel=1e-6)
        assert float(row["std_over_images"]) == pytest.approx(gate.std_over_images, rel=1e-4)
        assert int(row["images"]) == 599


def test_says_what_the_numbers_do_not_show(shown: Demo) -> None:
    text = (shown.root / "report.md").read_text(encoding="utf-8")
    for words in ("not random", "ImageNet", "calibnorm bench model", "share one set of test images"):
        assert words in text
    assert "mean nothing" not in text
    assert "…" not in shown.screen  # nothing is cut off on a terminal of 80 columns


def test_the_same_command_again_trains_nothing(shown: Demo) -> None:
    screen = StringIO()
    before = {path: path.stat().st_mtime_ns for path in shown.root.rglob("result.json")}
    assert demo.run(shown.config, Console(file=screen, width=80)) == 0
    assert f"{len(before)} of {len(before)} runs are there already" in screen.getvalue()
    assert {path: path.stat().st_mtime_ns for path in shown.root.rglob("result.json")} == before
    assert len(before) == 2 * len(NORMS) * 2


def told(accuracies: dict[str, float], **changes) -> Demonstration:
    """Return what is said where every norm has one accuracy in the clean condition."""
    config = replace(DemoConfig(norms=tuple(accuracies), noise=("none",), seeds=1), **changes)
    of = recipe(config.recipe)
    grid = plan(config, of)
    result = {norm: Result({"test_accuracy": value}, 1, 10, 6, 1.0) for norm, value in accuracies.items()}
    measure = tasks.of(of).headline
    lines = [
        Line(cell, {0: Outcome("finished", result[cell.column])}, measure, Sample({0: accuracies[cell.column]}), None)
        for cell in grid.cells
    ]
    return Demonstration(grid, lines, [], 1.0, config=config, recipe=of)


def test_how_much_of_the_gain_is_the_small_scale() -> None:
    gain, share = told({"bn": 20.0, CONTROL: 80.0, "iebn": 100.0}).shows("clean")
    assert "100.00 % in 6 epochs with IEBN, and to 20.00 % with BatchNorm (10.00 % is guessing)" in gain
    assert "80.00 %: that is 75 % of the difference" in share
    assert len(list(told({"bn": 97.0, CONTROL: 99.0, "iebn": 98.0}).shows("clean"))) == 1  # nothing to be shared
    assert list(told({"bn": 97.0, "rbn": 98.0}).shows("clean")) == []


def test_a_constant_gate_is_called_one() -> None:
    def sentence(std: float) -> str:
        row = {"condition": "clean", "norm": "iebn", "quantity": "gate", "mean": 0.3, "initial": 0.269}
        (said,) = layers.follows([{**row, "std_over_images": std}])
        return said

    assert "For practical purposes that is a constant" in sentence(0.0029)
    assert "constant" not in sentence(0.0031)
    assert "it started at 0.269" in sentence(0.1)


def test_times_are_medians_of_the_runs_steps(tmp_path: Path) -> None:
    made = told({"bn": 20.0, "iebn": 90.0}, out=tmp_path)
    for norm, steps in (("bn", (1.0, 2.0)), ("iebn", (3.0,))):
        folder = tmp_path / "demo" / "clean" / norm / "seed0"
        folder.mkdir(parents=True)
        lines = [f"{n},{ms},0,0,{ms},9" for n, ms in enumerate(steps, 1)]
        header = "epoch,data_ms,forward_ms,backward_ms,update_ms,images_per_second"
        (folder / "timing.csv").write_text("\n".join([header, *lines]))
    assert made.times().rows == [["clean", "bn", "3.0", "1.00"], ["clean", "iebn", "6.0", "2.00"]]
    missing = told({"bn": 20.0, "iebn": 90.0}, out=tmp_path / "empty")
    assert missing.times().rows == [["clean", "bn", "–", "–"], ["clean", "iebn", "–", "–"]]


def test_quick_is_small_but_for_what_is_given() -> None:
    quick = DemoConfig(quick=True).resolved()
    assert (quick.override, quick.seeds, quick.name) == ({"model": "resnet11", "epochs": 1}, 1, "demo-quick")
    given = DemoConfig(quick=True, seeds=3, name="mine", override={"epochs": 2}).resolved()
    assert (given.override, given.seeds, given.name) == ({"model": "resnet11", "epochs": 2}, 3, "mine")
    assert DemoConfig().resolved() == DemoConfig()
    text = told({"bn": 20.0, "iebn": 90.0}, quick=True).findings()[1].blocks[0]
    assert "its accuracies mean nothing" in text.items[0]


def test_control_and_small_rbn_start_as_they_say() -> None:
    start = torch.sigmoid(torch.tensor(-1.0)).item()
    network = models.build("resnet11", num_classes=10, norm=CONTROL, in_channels=1)
    owners = {name: m for name, m in network.named_modules() if isinstance(m, cn.BN2d)}
    assert owners
    assert all(torch.allclose(m.weight, torch.full_like(m.weight, 0.269)) for m in owners.values())
    owned = {layer.bn for layer in owners.values()}
    plain = [m for m in network.modules() if type(m) is torch.nn.BatchNorm2d and m not in owned]
    assert plain  # the shortcuts
    assert all(torch.equal(m.weight, torch.ones_like(m.weight)) for m in plain)
    rbn = models.build("resnet11", num_classes=10, norm=SMALL_RBN, in_channels=1)
    gates = [m.method.initial_gate(4) for m in rbn.modules() if isinstance(m, cn.RBN2d)]
    assert gates
    assert all(gate is not None and gate.tolist() == pytest.approx([start] * 4) for gate in gates)


@pytest.mark.nightly
def test_default_demo_shows_depth(tmp_path: Path) -> None:
    screen = StringIO()
    assert demo.run(DemoConfig(out=tmp_path, norms=("bn", CONTROL, "iebn"), noise=("none",)), Console(file=screen)) == 0
    rows = Demo(DemoConfig(out=tmp_path), screen.getvalue()).rows("summary.csv")
    reached = {row["column"]: float(row["mean"]) for row in rows}
    assert reached["bn"] < 60
    assert min(reached["iebn"], reached[CONTROL]) > 90
