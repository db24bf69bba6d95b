"""`calibnorm demo`: what it trains, what it writes and what it leaves alone."""

from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from statistics import mean, median, stdev

import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

import calibnorm as cn
from calibnorm.errors import UsageError
from calibnorm.lab.demo import data, folder, parallel
from calibnorm.lab.demo.config import CONDITIONS, VARIANTS, DemoConfig
from calibnorm.lab.demo.model import build
from calibnorm.lab.demo.report import Report, command_line
from calibnorm.lab.demo.run import run

SMALL = DemoConfig(seeds=2, epochs=2, blocks=1, width=4, batch_size=256, workers=1)


@dataclass
class Demo:
    out: Path
    report: Report
    screen: str
    metrics: list[dict[str, str]]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    out = tmp_path_factory.mktemp("demo") / "out"
    screen = StringIO()
    report = run(small(out), Console(file=screen, width=80))
    return Demo(out, report, screen.getvalue(), read_metrics(out))


def small(out: Path, **changes: object) -> DemoConfig:
    return DemoConfig(**{**vars(SMALL), "out": out, **changes})


def read_metrics(out: Path) -> list[dict[str, str]]:
    with (out / "metrics.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_writes_everything(demo: Demo) -> None:
    assert {path.name for path in demo.out.iterdir()} == folder.FILES
    assert [path.name for path in demo.out.parent.iterdir()] == ["out"]  # no staging folder is left
    for name in ("curves.png", "gates.png"):
        with Image.open(demo.out / name) as image:
            assert min(image.size) > 600
        assert f"({name})" in (demo.out / "report.md").read_text(encoding="utf-8")
    config = json.loads((demo.out / "config.json").read_text(encoding="utf-8"))
    assert config["noise"] == [0.8, 0.5]
    assert config["width"] == 4
    environment = json.loads((demo.out / "environment.json").read_text(encoding="utf-8"))
    assert environment["torch"] == torch.__version__
    assert environment["cpu"]


def test_metrics_hold_every_epoch_of_every_run(demo: Demo) -> None:
    keys = [(m["condition"], m["norm"], int(m["seed"]), int(m["epoch"])) for m in demo.metrics]
    expected = {(c, n, s, e) for c in CONDITIONS for n in SMALL.norms for s in (0, 1) for e in (1, 2)}
    assert len(keys) == len(expected)
    assert set(keys) == expected


def test_table_equals_metrics(demo: Demo) -> None:
    lines = [
        line for line in (demo.out / "report.md").read_text(encoding="utf-8").splitlines() if line.startswith("| c")
    ][1:]
    assert len(lines) == 6
    for line, row in zip(lines, demo.report.rows, strict=True):
        of = [m for m in demo.metrics if (m["condition"], m["norm"]) == (row.condition, row.norm)]
        last = [float(m["test_accuracy"]) for m in of if m["epoch"] == "2"]
        bn = [
            float(m["test_accuracy"])
            for m in demo.metrics
            if (m["condition"], m["norm"], m["epoch"]) == (row.condition, "bn", "2")
        ]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[1] == VARIANTS[row.norm].label
        assert cells[2] == f"{mean(last):.2f} ± {stdev(last):.2f}"
        if row.norm != "bn":
            differences = [a - b for a, b in zip(last, bn, strict=True)]
            assert cells[3] == f"{mean(differences):+.2f} [{min(differences):+.2f}, {max(differences):+.2f}]"
        assert cells[4] == f"{median(float(m['step_ms']) for m in of if m['step_ms'] != 'nan'):.1f}"
        network = build(SMALL, row.norm, row.condition, seed=0)
        assert cells[6] == f"{sum(p.numel() for p in network.parameters()):,}"
        assert all(cell in re.sub(r"\s+", " ", demo.screen) for cell in (cells[2], cells[4], cells[6]))


def test_says_what_the_numbers_do_not_show(demo: Demo) -> None:
    text = (demo.out / "report.md").read_text(encoding="utf-8")
    for words in ("599 test images", "0.269", "bn-gate", "not random", "nn.BatchNorm2d", "ImageNet"):
        assert words in text
    assert "mean nothing" not in text
    quick = replace(demo.report, config=replace(demo.report.config, quick=True))
    assert "its accuracies mean nothing" in quick.markdown()
    assert "…" not in demo.screen  # nothing is cut off on a terminal of 80 columns


@pytest.mark.usefixtures("forked_workers")
def test_same_seed_same_numbers_in_any_number_of_processes(demo: Demo, tmp_path: Path) -> None:
    run(small(tmp_path / "out", workers=2), Console(file=StringIO()))

    def numbers(metrics: list[dict[str, str]]) -> list[tuple[str, ...]]:
        return [tuple(value for key, value in m.items() if key != "step_ms") for m in metrics]

    assert numbers(read_metrics(tmp_path / "out")) == numbers(demo.metrics)


def test_runs_again_into_its_folder_but_into_no_other(tmp_path: Path) -> None:
    out, quiet = tmp_path / "out", Console(file=StringIO())
    one = {"seeds": 1, "epochs": 1, "norms": ("bn",)}
    first = run(small(out, **one), quiet)
    assert math.isnan(first.rows[0].accuracy_std)
    assert "nothing is compared" in (out / "report.md").read_text(encoding="utf-8")
    assert not (out / "gates.png").exists()
    run(small(out, **one, width=5), quiet)
    assert json.loads((out / "config.json").read_text(encoding="utf-8"))["width"] == 5

    (out / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"thesis\.txt"):
        run(small(out, **one), quiet)
    assert json.loads((out / "config.json").read_text(encoding="utf-8"))["width"] == 5
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_folder_is_whole_or_untouched(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for interrupt in (KeyboardInterrupt, ValueError):

        def stop_halfway(error: type[BaseException] = interrupt) -> None:
            with folder.result_folder(out) as place:
                (place / "report.md").write_text("half")
                raise error

        with pytest.raises(interrupt):
            stop_halfway()
        assert list(out.iterdir()) == []
        assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("content", ['{"lr": 1}', "[1]", "not json"])
def test_folder_of_something_else_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UsageError, match="was not written by `calibnorm demo`"), folder.result_folder(tmp_path):
        pass
    assert (tmp_path / "config.json").read_text(encoding="utf-8") == content


def test_a_quick_demo_does_not_replace_a_full_one(tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "config.json").write_text(json.dumps({"command": "calibnorm demo", "quick": False}))
    with (
        pytest.raises(UsageError, match="holds a full demo, which --quick would replace"),
        folder.result_folder(full, quick=True),
    ):
        pytest.fail("the block must not start")
    with folder.result_folder(full) as place:
        (place / "report.md").touch()
    assert [path.name for path in full.iterdir()] == ["report.md"]
    assert DemoConfig(quick=True).resolved().out == Path("runs/demo-quick")
    assert DemoConfig(quick=True, out=full).resolved().out == full


def test_file_and_unwritable_place_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(UsageError, match="is a file"), folder.result_folder(file):
        pass
    with pytest.raises(UsageError, match="cannot be written"), folder.result_folder(file / "inside"):
        pass
    assert file.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("earlier", [True, False])
def test_failed_move_leaves_the_earlier_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool) -> None:
    out = tmp_path / "out"
    if earlier:
        out.mkdir()
        (out / "config.json").write_text(json.dumps({"command": folder.COMMAND}))
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError("disk trouble")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="disk trouble"), folder.result_folder(out):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == (["out", "config.json"] if earlier else [])


def test_networks_of_a_seed_share_their_initial_weights() -> None:
    def weights(norm: str, condition: str, seed: int) -> list[torch.Tensor]:
        network = build(SMALL, norm, condition, seed)
        return [m.weight for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]

    reference = weights("bn", "clean", 0)
    for norm in VARIANTS:
        for condition in CONDITIONS:
            assert all(map(torch.equal, weights(norm, condition, 0), reference))
    assert not torch.equal(weights("bn", "clean", 1)[0], reference[0])


def test_conditions_and_variants_build_what_they_say() -> None:
    def build_modules(norm: str, condition: str) -> list[nn.Module]:
        return list(build(SMALL, norm, condition, 0).modules())

    assert not any(isinstance(m, cn.BN2d) for m in build_modules("bn", "clean"))
    for norm, kind in (("bn", cn.BN2d), ("iebn", cn.IEBN2d), ("rbn", cn.RBN2d)):
        noisy = [m for m in build_modules(norm, "noise") if isinstance(m, kind)]
        assert len(noisy) == 9  # ResNet-8: seven in the trunk, two in shortcuts
        assert all(m.noise == (0.8, 0.5) and m.noise_in == "always" for m in noisy)
    gammas = [m.weight for m in build_modules("bn-gate", "clean") if isinstance(m, cn.BN2d)]
    assert len(gammas) == 9
    assert all(torch.allclose(g, torch.sigmoid(torch.tensor(-1.0)).expand_as(g)) for g in gammas)


def test_data_is_split_once_and_standardized_by_the_training_images() -> None:
    digits = data.load()
    assert len(digits.train_labels) + len(digits.test_labels) == 1797
    assert digits.train_images.mean().abs() < 1e-6
    assert digits.train_images.std() == pytest.approx(1, abs=1e-4)
    assert digits.test_images.mean().abs() > 1e-4  # its own mean was not taken away
    shares = digits.train_labels.bincount() / len(digits.train_labels)
    assert torch.allclose(shares, digits.test_labels.bincount() / len(digits.test_labels), atol=0.005)
    assert torch.equal(data.load().test_images, digits.test_images)


def test_batches_depend_on_seed_and_epoch_alone() -> None:
    digits = data.load()

    def labels(seed: int, epoch: int) -> torch.Tensor:
        batches = [labels for _, labels in digits.batches(64, seed, epoch)]
        assert len(batches) == digits.steps(64) == 18
        return torch.cat(batches)

    torch.manual_seed(1)
    first = labels(0, 1)
    assert torch.equal(labels(0, 1), first)
    assert not torch.equal(labels(0, 2), first)
    assert not torch.equal(labels(1, 1), first)


def test_divergence_is_counted(tmp_path: Path) -> None:
    config = small(tmp_path / "out", seeds=1, norms=("bn", "iebn"), learning_rate=1e30)
    report = run(config, Console(file=StringIO()))
    assert [row.diverged for row in report.rows] == [1, 1, 1, 1]
    assert "(1 diverged)" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "a single seed" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_worker_stops_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    context = parallel.multiprocessing.get_context("spawn")
    steps, stop = context.Value("q", 0), context.Event()
    before = torch.get_num_threads()
    parallel.start_worker(steps, stop)
    torch.set_num_threads(before)
    parallel.step_in_worker()
    assert steps.value == 1
    stop.set()
    with pytest.raises(parallel.Stopped):
        parallel.step_in_worker()


def test_command_line_rebuilds_the_settings() -> None:
    assert command_line(DemoConfig()) == "calibnorm demo"
    words = command_line(DemoConfig(noise=(0.5, 0.2), batch_size=64))
    assert words == "calibnorm demo --noise 0.5 0.2 --batch-size 64"


@pytest.mark.nightly
def test_default_demo_learns_the_digits(tmp_path: Path) -> None:
    report = run(DemoConfig(out=tmp_path / "out"), Console(file=StringIO()))
    # scikit-learn's own example reaches 97 % with a support vector machine.
    assert min(row.accuracy for row in report.rows) > 93
