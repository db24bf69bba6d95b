"""`calibnorm compare` as a user types it, on digits: what it trains, reuses, refuses, prints and writes."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch
from PIL import Image

from calibnorm.lab.experiments import compare, experiment, worker_process, workers
from calibnorm.lab.experiments.config import CompareConfig
from calibnorm.lab.experiments.grid import Grid, Run
from calibnorm.lab.experiments.outcomes import Outcome
from calibnorm.lab.recipes import RECIPES
from calibnorm.lab.training.interruption import Interruption
from lab import calling
from lab.processes import is_there

TINY = ["--epochs", "1", "--train-images", "64", "--batch-size", "32", "--jobs", "0", "--accelerator", "cpu"]
# A gamma of 1e30 overflows with the first step: a norm whose every run diverges.
NORMS = ["bn", "bn:gamma_init=1e+30", "iebn:init=(0,1)"]


@dataclass
class Done:
    root: Path
    status: int | str | None
    screen: str

    def read(self, name: str) -> list[dict[str, str]]:
        with (self.root / name).open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))


def main(*args: str) -> int | str | None:
    return calling.main(["compare", *args])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    out = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch, open(out / "screen", "w+", encoding="utf-8") as screen:
        patch.setattr(sys, "stdout", screen)
        patch.setenv("COLUMNS", "80")
        args = [*TINY, "--norms", *NORMS, "--noise", "none", "--noise", "0.5,0.2", "--seeds", "2"]
        status = main("digits-tiny", *args, "--name", "first", "--out", str(out / "runs"))
        screen.seek(0)
        return Done(out / "runs/first", status, screen.read())


def test_every_run_is_there_and_a_failure_is_an_exit_status(done: Done) -> None:
    assert done.status == 1
    results = done.read("results.csv")
    keys = [(r["row"], r["column"], r["seed"]) for r in results]
    rows = ("clean", "noise 0.5,0.2")
    assert keys == [(row, norm, seed) for row in rows for norm in NORMS for seed in "01"]
    for result in results:
        folder = done.root / result["folder"]
        if result["column"] == "bn:gamma_init=1e+30":
            assert result["state"] == "diverged"
            assert "NaN or infinite at step" in result["message"]
            assert not (folder / "result.json").exists()
            continue
        assert result["state"] == "finished"
        found = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        assert float(result["test_accuracy"]) == pytest.approx(found["test_accuracy"], abs=1e-4)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        assert (config["norm"], config["seed"]) == (result["column"], int(result["seed"]))
        assert config["noise"] == (None if result["row"] == "clean" else [0.5, 0.2])


def test_summary_and_report_are_those_of_the_runs(done: Done) -> None:
    results, summary = done.read("results.csv"), done.read("summary.csv")
    report = re.sub(" +", " ", (done.root / "report.md").read_text(encoding="utf-8"))  # tables are aligned by blanks
    for line in summary:
        of = [r for r in results if (r["row"], r["column"]) == (line["row"], line["column"])]
        values = [float(r["test_accuracy"]) for r in of if r["state"] == "finished"]
        if line["column"] == "bn:gamma_init=1e+30":
            assert (line["failed"], line["mean"], line["difference"]) == ("2", "", "")
            assert f"| {line['row']} | bn:gamma_init=1e+30 | – | – | – | – | 2 failed of 2 | NaN NaN |" in report
            continue
        assert float(line["mean"]) == pytest.approx(mean(values), abs=1e-3)
        assert float(line["std"]) == pytest.approx(stdev(values), abs=1e-3)
        base = [float(r["test_accuracy"]) for r in results if (r["row"], r["column"]) == (line["row"], "bn")]
        if line["column"] != "bn":
            differences = [a - b for a, b in zip(values, base, strict=True)]
            assert float(line["difference"]) == pytest.approx(mean(differences), abs=1e-3)
            assert int(line["wins"]) == sum(d > 0 for d in differences)
            assert f"{mean(differences):+.2f} [" in report
        assert f"| {mean(values):.2f} ± {stdev(values):.2f} |" in report
        assert f"| {values[0]:.1f} {values[1]:.1f} |" in report
    for run in ("clean/bn_gamma_init=1e+30/seed0", "noise_0.5,0.2/bn_gamma_init=1e+30/seed1"):
        assert f"- {run} diverged: the loss or a weight is NaN or infinite at step " in report
    assert "2 differences are looked at" in report  # not those of the norm whose runs failed


def test_the_screen_shows_the_same_in_80_columns(done: Done) -> None:
    assert "…" not in done.screen
    assert max(len(line) for line in done.screen.splitlines() if not line.startswith("Page: ")) <= 80
    for row in ("clean", "noise 0.5,0.2"):
        assert f"\n{row} " in done.screen
    assert done.screen.count("NaN NaN") == 2
    assert re.search(r"bn:gamma_init=1e\+30 +– +– +2 of 2 +NaN NaN", done.screen)


def test_pictures(done: Done) -> None:
    for name in ("curves.png", "accuracies.png"):
        with Image.open(done.root / name) as image:
            assert min(image.size) > 400
        assert f"({name})" in (done.root / "report.md").read_text(encoding="utf-8")


def test_the_command_in_the_report_makes_it_again(
    done: Done, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    match = re.search(
        r"^    calibnorm compare (.*)$", (done.root / "report.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert match is not None
    words = match[1].replace("'", "").split()

    def train(*_: object) -> None:
        raise AssertionError("trained again")

    # Nothing is left to train: neither what is finished nor what diverged.
    monkeypatch.setattr(worker_process, "trained", train)
    before = {path: path.stat().st_mtime_ns for path in done.root.rglob("result.json")}
    assert main(*words, "--out", str(done.root.parent), "--jobs", "1") == 1
    assert {path: path.stat().st_mtime_ns for path in done.root.rglob("result.json")} == before
    assert "12 of 12 runs are there already" in capsys.readouterr().out


def test_another_baseline_for_the_same_runs(done: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = Done(tmp_path / "first", 1, "")
    shutil.copytree(done.root, again.root)
    args = [*TINY, "--norms", *NORMS, "--noise", "none", "--seeds", "2", "--name", "first", "--out", str(tmp_path)]
    assert main("digits-tiny", *args, "--baseline", NORMS[2]) == 1
    assert "6 of 6 runs are there already" in capsys.readouterr().out
    accuracies = {(r["column"], r["seed"]): float(r["test_accuracy"] or "nan") for r in again.read("results.csv")}
    lines = {line["column"]: line for line in again.read("summary.csv")}
    expected = mean(accuracies["bn", seed] - accuracies[NORMS[2], seed] for seed in "01")
    assert float(lines["bn"]["difference"]) == pytest.approx(expected, abs=1e-3)
    assert lines[NORMS[2]]["difference"] == ""
    assert f"--baseline '{NORMS[2]}' --noise none" in (again.root / "report.md").read_text(encoding="utf-8")


def test_more_of_it_trains_what_is_missing(done: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = [*TINY, "--norms", "bn", "rbn", "--noise", "none", "--seeds", "2"]
    assert main("digits-tiny", *args, "--name", "first", "--out", str(done.root.parent)) == 0
    assert "2 of 4 runs are there already" in capsys.readouterr().out
    assert (done.root / "clean/rbn/seed1/result.json").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--epochs", "2"], "--epochs 2: {root} was begun with 1"),
        (["--learning-rate", "0.2"], "--learning-rate 0.2: {root} was begun with 0.1"),
        (["--norms", "rbn", "--model", "resnet20"], "--model resnet20: {root} was begun with resnet11"),
        (["--train-images", "96"], "--train-images 96: {root} was begun with 64"),
    ],
)
def test_changed_settings_are_refused(
    done: Done, change: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (done.root / "report.md").read_text(encoding="utf-8")
    assert main("digits-tiny", *TINY, "--name", "first", "--out", str(done.root.parent), *change) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"calibnorm: {named.format(root=done.root)}; ")
    assert (done.root / "report.md").read_text(encoding="utf-8") == before


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["no-such-recipe"], "recipe no-such-recipe: "),
        (["digits-tiny", "--norms", "bn", "xbn"], "--norms xbn: "),
        (["digits-tiny", "--norms", "bn", "iebn:initial=3"], "--norms iebn: "),
        (["digits-tiny", "--norms", "iebn", "iebn:init=(0,-1)"], "--norms iebn iebn:init=(0,-1): iebn is there twice"),
        (["digits-tiny", "--norms", "gn:groups=7"], "--norms gn:groups=7: "),
        (
            ["digits-tiny", "--norms", "bn", "iebn", "--baseline", "rbn"],
            "--baseline rbn: choose one of --norms bn iebn",
        ),
        (["digits-tiny", "--noise", "0,1"], "--noise 0,1: "),
        (["digits-tiny", "--noise", "none", "--noise", "0.5"], "--noise 0.5: "),
        (["digits-tiny", "--seeds", "0"], "--seeds 0: "),
        (["digits-tiny", "--jobs", "-1"], "--jobs -1: "),
        (["digits-tiny", "--name", "../x"], "--name ../x: "),
        (["digits-tiny", "--model", "resnet12"], "--model resnet12: "),
        (["digits-tiny", "--data", "cifar101"], "--data cifar101: "),
        (["digits-tiny", "--data", "cifar100"], "CIFAR-100 is missing: "),
        (
            ["digits-tiny", "--milestones", "1", "2"],
            "--milestones 1 2: has no effect with --schedule cosine",
        ),
        (["digits-tiny", "--noise-in", "train"], "--noise-in train: has no effect without --noise"),
        (["digits-tiny", "--stages", "stage9"], "--stages stage9: "),
        (["digits-tiny", "--batch-size", "5000"], "--batch-size 5000: "),
        (["digits-tiny", "--epochs", "0"], "--epochs 0: "),
        (["digits-tiny", "--image-size", "5"], "--image-size 5: "),
        (
            ["digits-tiny", "--model", "densenet10_k12", "--image-size", "2"],
            "--model densenet10_k12: does not take images",
        ),
        (["digits-tiny", "--mix", "imagenet"], "--mix imagenet: "),
        (["digits-tiny", "--mix", "foo"], "--mix foo: unknown"),
        (["digits-tiny", "--accelerator", "cpu", "--precision", "float16"], "--precision float16: needs a GPU"),
        pytest.param(
            ["digits-tiny", "--accelerator", "cuda"],
            "--accelerator cuda: torch sees no GPU here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_wrong_input_is_named_in_a_line_before_training(
    args: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*_: object) -> None:
        raise AssertionError("training started")

    monkeypatch.setattr(experiment, "train_grid", train)
    out = tmp_path / "out"
    assert main(*args, "--out", str(out), "--data-root", str(tmp_path / "data")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"calibnorm: {named}")
    assert not out.exists()


@pytest.mark.parametrize("spelling", ["none", "None"])
def test_a_recipes_setting_goes_back_to_none(spelling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    had = {"clip_norm": 1.0, "ema": 0.9, "train_images": 640, "image_size": 4, "mix": "mnist", "weight_decay": 0.5}
    monkeypatch.setitem(RECIPES, "digits-tiny", replace(RECIPES["digits-tiny"], **had))
    planned: list[Grid] = []

    def carry_out(grid: Grid, *_: object) -> int:
        planned.append(grid)
        return 0

    monkeypatch.setattr(compare, "check", lambda *_: None)
    monkeypatch.setattr(compare, "carry_out", carry_out)
    options = ("--clip-norm", "--ema", "--train-images", "--image-size", "--mix")
    assert main("digits-tiny", "--out", str(tmp_path), *(word for name in options for word in (name, spelling))) == 0
    assert main("digits-tiny", "--out", str(tmp_path)) == 0
    recipes = [grid.cells[0].recipe for grid in planned]
    assert [(r.clip_norm, r.ema, r.train_images, r.image_size, r.mix, r.weight_decay) for r in recipes] == [
        (None, None, None, None, None, 0.5),
        (1.0, 0.9, 640, 4, "mnist", 0.5),
    ]


def test_the_reports_command_says_what_went_back_to_none(tmp_path: Path) -> None:
    config = CompareConfig(override={"clip_norm": None, "nesterov": True, "milestones": (1, 2)}, out=tmp_path)
    grid = compare.plan(config, RECIPES["digits-tiny"])
    words = compare.Comparison(grid, [], [], 0.0, config=config, recipe=RECIPES["digits-tiny"]).command_line().split()
    expected = ["--clip-norm", "none", "--nesterov", "--milestones", "1", "2"]
    assert words[words.index("--clip-norm") :] == expected


def test_a_file_or_another_folder_in_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    for name in ("file", "mine"):
        assert main("digits-tiny", *TINY, "--name", name, "--out", str(tmp_path)) == 2
        assert f"--out {tmp_path / name}: " in capsys.readouterr().err
    assert main("digits-tiny", *TINY, "--out", str(tmp_path / "file" / "deeper")) == 2
    assert capsys.readouterr().err == f"calibnorm: --out {tmp_path / 'file'}: is a file; name a folder\n"


def command(out: Path, *args: str) -> subprocess.Popen[str]:
    """Start the real command; a shell starts background jobs with SIGINT ignored, and a terminal does not."""
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from calibnorm.lab.entry import main\nif __name__ == '__main__': sys.exit(main())"
    words = [sys.executable, "-c", code, "compare", "digits-tiny", "--out", str(out), "--name", "shared", *args]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


SHARED = ["--epochs", "40", "--test-every", "40", "--train-images", "64", "--batch-size", "32", "--norms", "bn", "rbn"]


@pytest.mark.parametrize("jobs", ["0", "1"])
def test_sigterm_is_an_exit_status_of_its_own_and_a_line(
    jobs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if jobs == "0":

        def train(run: Run, settings: worker_process.Settings, stop: Interruption) -> Outcome:
            os.kill(os.getpid(), signal.SIGTERM)
            stop.obey()
            raise AssertionError("went on")

        monkeypatch.setattr(worker_process, "trained", train)
    else:  # the processes are told to end: no run is needed for that
        monkeypatch.setattr(workers.Worker, "start", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    args = [*TINY[:-4], "--jobs", jobs, "--accelerator", "cpu", "--norms", "bn", "--seeds", "1", "--out", str(tmp_path)]
    assert main("digits-tiny", *args) == 143
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith("calibnorm: stopped by SIGTERM; ")
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.nightly
def test_two_commands_share_a_folder_and_one_is_killed(tmp_path: Path) -> None:
    with command(tmp_path, *SHARED, "--jobs", "1") as first, command(tmp_path, *SHARED, "--jobs", "1") as second:
        root = tmp_path / "shared"
        while len(list(root.rglob("metrics.csv"))) < 2:
            assert first.poll() is None
            assert second.poll() is None
            time.sleep(0.1)
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate(timeout=60)
        out, err = second.communicate(timeout=200)
        assert second.returncode == 0, out + err
    results = list(root.rglob("result.json"))
    assert len(results) == 6
    for result in results:
        log = result.parent.with_name(f"{result.parent.name}.log").read_text(encoding="utf-8")
        # Every epoch was trained once, also where the killed command's run was taken over.
        epochs = re.findall(r"^epoch +(\d+)/40", log, re.MULTILINE)
        assert len(set(epochs)) == 40
        assert len(epochs) <= 41  # killed between the line and the checkpoint


@pytest.mark.nightly
def test_ctrl_c_stops_all_and_the_same_command_goes_on(tmp_path: Path) -> None:
    with command(tmp_path, *SHARED, "--jobs", "2") as process:
        while len(list(tmp_path.rglob("metrics.csv"))) < 2:
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert "Traceback" not in out + err
    assert "stopped by Ctrl-C" in err
    assert not is_there(process.pid)  # no worker is left
    assert len(list(tmp_path.rglob("checkpoints/*"))) >= 2
    with command(tmp_path, *SHARED, "--jobs", "2") as again:
        out, err = again.communicate(timeout=200)
    assert again.returncode == 0, out + err
    assert len(list(tmp_path.rglob("result.json"))) == 6
