"""Each kind of page in a browser: what a person would see of it, on a phone, on a desk and in the dark."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import calibnorm
from browser import CHROMIUM, WITHOUT, Seen, seen

pytestmark = [pytest.mark.nightly, pytest.mark.skipif(CHROMIUM is None, reason=WITHOUT)]
TINY = ["--train-images", "96", "--batch-size", "32", "--jobs", "0", "--accelerator", "cpu"]
COMMANDS = {
    "comparison": ["compare", "digits-tiny", "--epochs", "2", "--norms", "bn", "iebn",
                   "bn:gamma_init=0.269,skip=shortcut", "--noise", "none", "--noise", "0.8,0.5", "--seeds", "3", *TINY],
    "table": ["table", "iebn-fig4", "--seeds", "1", "--jobs", "0", "--accelerator", "cpu"],
    "demo": ["demo", "--quick", *TINY],
    "bench": ["bench", "layer", "--shapes", "2x4x5x5", "4x8x2x2", "--ops", "norm",
              "--dtypes", "float32", "--device", "cpu"],
    "training": ["train", "digits-tiny", "--norm", "rbn", "--epochs", "2", "--noise-every", "1", "--train-images", "96",
                 "--batch-size", "32", "--accelerator", "cpu"],
    "run": ["inspect", "runs/digits-tiny/rbn-seed0"],
    "gates": ["inspect", "gates", "runs/compare/digits-tiny"],
    "report": ["report", "runs/compare/digits-tiny"],
    "mixture": ["report", "runs/compare/digits-tiny/clean/iebn/seed0", "runs/compare/demo-quick"],
}  # fmt: skip
PAGES = {
    "comparison": "runs/compare/digits-tiny/report.html",
    "table": "runs/table/iebn-fig4-tiny/report.html",
    "demo": "runs/compare/demo-quick/report.html",
    "bench": "runs/bench/layer.html",
    "run": "runs/digits-tiny/rbn-seed0/report.html",
    "gates": "runs/compare/digits-tiny/average_gates.html",
    "report": "runs/report/digits-tiny/report.html",
    "mixture": "runs/report/clean-iebn-seed0-and-1-more/report.html",
}
SECTIONS = {
    "comparison": ["Summary", "Differences from bn", "Every run", "Learning curves", "How to read it", "Made with"],
    "table": ["Summary", "Differences", "Every run", "Learning curves", "How to read it", "Made with"],
    "demo": ["Summary", "What this shows", "Learned gates by layer", "Every run", "Learning curves", "Made with"],
    "bench": ["Summary", "Every ratio", "Ratios by group", "Every timing", "Made with"],
    "run": ["Summary", "Learning curves", "Learned gates by layer", "Channels before and after scaling",
            "Features of an image", "Batch noise by layer", "Batch noise over training", "Every epoch", "Settings",
            "Made with"],
    "gates": ["Summary", "Every run", "Made with"],
    "report": ["Summary", "Every run", "Learning curves", "Learned gates by layer", "Batch noise by layer",
               "How to read it", "Made with"],
    "mixture": ["Summary", "Every run", "Learning curves", "Learned gates by layer", "Batch noise by layer",
                "Made with"],
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every command has been run, as a user runs it; each has said where its page is."""
    folder = tmp_path_factory.mktemp("pages")
    here = {**os.environ, "COLUMNS": "80", "PYTHONPATH": str(Path(calibnorm.__file__).parents[1])}
    for kind, words in COMMANDS.items():
        line = [sys.executable, "-m", "calibnorm", *words]
        done = subprocess.run(line, cwd=folder, capture_output=True, text=True, env=here, check=False)
        assert done.returncode == 0, done.stderr
        assert PAGES.get(kind, "") in done.stdout
    return folder


@pytest.mark.parametrize("kind", PAGES)
@pytest.mark.parametrize(("width", "dark"), [(360, False), (1200, False), (1200, True)])
def test_a_person_can_read_it(root: Path, tmp_path: Path, kind: str, width: int, dark: bool) -> None:
    page = seen(root / PAGES[kind], tmp_path, width, dark)
    assert page.language == "en"
    names = [name for tag, name in page.headings if tag == "H2"]
    assert [tag for tag, _ in page.headings] == ["H1"] + ["H2"] * len(names)
    assert page.title == page.headings[0][1]
    assert [name for name in names if name in SECTIONS[kind]] == SECTIONS[kind]
    assert page.tops == sorted(page.tops)
    assert page.overflow <= 0
    assert page.outside == []
    assert page.asked == []
    assert all(page.links)
    assert page.panels
    for wide, high, label in page.panels:
        assert 250 < wide <= width
        assert high > 80
        assert label
    assert page.captions
    assert all(page.captions)
    assert sum(page.background) < 100 if dark else page.background == [255, 255, 255]
    assert page.least("text") >= 4.5
    assert page.least("mark") >= 3
    assert page.said
    assert all(page.said)
    assert page.stops == page.pointed  # one stop of the Tab key for a panel
    assert page.focused == {"shown": "visible", "others": 1, "after": 1}
    assert any(line.startswith("calibnorm ") for line in page.commands)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("kind", ["comparison", "report", "demo", "mixture"])
def test_numbers_of_a_comparison_are_those_of_its_tables(root: Path, tmp_path: Path, kind: str) -> None:
    path = root / PAGES[kind]
    page = seen(path, tmp_path)
    shown = page.table("norm", "accuracy (%)", "95 % interval")
    lines = rows(path.with_name("summary.csv"))
    assert [line["norm"] for line in shown] == [line["column"] for line in lines]
    for on_page, line in zip(shown, lines, strict=True):
        mean = float(line["mean"])
        std = f" ± {float(line['std']):.2f}" if line["std"] else ""
        assert on_page["accuracy (%)"] == f"{mean:.2f}{std}"
        if line["low95"]:
            assert on_page["95 % interval"] == f"[{float(line['low95']):.2f}, {float(line['high95']):.2f}]"
    every = page.table("seed", "state", "test accuracy")
    results = rows(path.with_name("results.csv"))
    for on_page, result in zip(every, results, strict=True):
        assert on_page["test accuracy"] == result["test_accuracy"]
        if result["test_accuracy"]:
            said = f"{result['column']}, seed {result['seed']}: {float(result['test_accuracy']):.4g}"
            assert said in page.said


def test_numbers_of_the_others_are_those_of_their_files(root: Path, tmp_path: Path) -> None:
    table = seen(root / PAGES["table"], tmp_path)
    for line, summary in zip(
        table.table("ours (%)", "paper (%)"), rows(root / "runs/table/iebn-fig4-tiny/summary.csv"), strict=True
    ):
        assert line["ours (%)"] == f"{float(summary['mean']):.2f}"
        assert line["paper (%)"].startswith(f"{float(summary['paper']):.2f}" if summary["paper"] else "–")
    bench = seen(root / PAGES["bench"], tmp_path)
    timings = rows(root / "runs/bench/layer.csv")
    for line, timing in zip(bench.table("p50 ms", "ratio to bn"), timings, strict=True):
        assert float(line["p50 ms"]) == pytest.approx(float(timing["p50_ms"]), rel=2e-3, abs=1e-4)
        assert line["impl"] == timing["impl"]
    run = seen(root / PAGES["run"], tmp_path)
    metrics = rows((root / PAGES["run"]).with_name("metrics.csv"))
    for line, epoch in zip(run.table("epoch", "test accuracy"), metrics, strict=True):
        assert float(line["test accuracy"]) == pytest.approx(float(epoch["test_accuracy"]), rel=1e-3)
    last = metrics[-1]
    assert f"training, epoch {last['epoch']}: {float(last['train_loss']):.4g}" in run.said
    noise = rows((root / PAGES["run"]).with_name("noise.csv"))
    for line in run.table("own, first quarter"):
        own = [float(row["own"] or "nan") for row in noise if row["layer"] == line["layer"]]
        count = -(-len(own) // 4)
        for name, part in (("first", own[:count]), ("last", own[-count:])):
            shown = float(line[f"own, {name} quarter"] or "nan")
            assert shown == pytest.approx(sum(part) / count, rel=1e-2, nan_ok=True)
    lost = [float(row["accumulated"]) for row in noise if row["layer"] == "(loss)"]
    assert f"rbn, step {noise[-1]['step']}: {lost[-1]:.4g}" in run.said
    gates = seen(root / PAGES["gates"], tmp_path)
    held = rows(root / "runs/compare/digits-tiny/average_gates.csv")
    for line, row in zip(gates.table("as trained", "lost"), held, strict=True):
        assert line["as trained"] == f"{float(row['as_trained']):.2f} %"


def test_the_check_itself_sees_what_is_wrong(tmp_path: Path) -> None:
    broken = """<!DOCTYPE html><html lang="de"><head>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline';
 script-src 'unsafe-inline'">
<title>x</title></head><body><h1>x</h1><p style="color:#aaa;width:500px">pale</p><a href="#none">y</a>
<img src="http://example.org/x.png"><svg class="panel" width="50" height="9"><text x="40">far too long</text></svg>"""
    (tmp_path / "broken.html").write_text(broken, encoding="utf-8")
    page: Seen = seen(tmp_path / "broken.html", tmp_path, 360)
    assert page.overflow > 100
    assert page.least("text") < 3
    assert page.links == [False]
    assert any(re.search("example.org", each) for each in page.asked)
    assert page.outside == ["far too long"]
