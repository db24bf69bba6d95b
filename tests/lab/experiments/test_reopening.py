"""`calibnorm inspect RUN` and `calibnorm report RUNS...`: what they find in folders, and what they refuse."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from bench.helpers import made
from calibnorm.bench.timings import write_timings
from calibnorm.lab.experiments import grid, layers, single
from calibnorm.lab.experiments.gathered import gather
from calibnorm.lab.experiments.reopening import name_of
from calibnorm.lab.recipes import RECIPES, Classification
from calibnorm.lab.training.folder import RESULT
from calibnorm.report.files import write_json
from lab.calling import main

TINY = ["--epochs", "1", "--train-images", "64", "--batch-size", "32", "--jobs", "0", "--accelerator", "cpu"]


@dataclass
class Left:
    """What commands have left: a comparison of 2 norms in 2 conditions, and the report that they wrote of it."""

    out: Path
    root: Path

    def run(self, norm: str = "iebn", row: str = "clean") -> Path:
        return self.root / row / norm / "seed0"


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Left:
    out = tmp_path_factory.mktemp("left")
    args = ["--norms", "iebn", "bn", "--baseline", "bn", "--noise", "0.8,0.5", "--noise", "none", "--seeds", "1"]
    assert main(["compare", "digits-tiny", *TINY, *args, "--name", "first", "--out", str(out)]) == 0
    return Left(out, out / "first")


def text(path: Path) -> str:
    return re.sub(" +", " ", path.read_text(encoding="utf-8"))


def report(capsys: pytest.CaptureFixture[str], out: Path, *places: Path, gates: bool = False) -> Path:
    """Return the page that the command says it has written."""
    words = ["report", *map(str, places), "--out", str(out), "--gates" if gates else "--no-gates"]
    assert main(words) == 0
    page = re.search(r"^Page: (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert page is not None
    return Path(page[1])


def test_a_comparison_is_what_its_command_wrote(left: Left, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = report(capsys, tmp_path, left.root)
    assert page == tmp_path / "report.html"
    for name in ("results.csv", "summary.csv"):
        assert (tmp_path / name).read_text() == (left.root / name).read_text()
    written = text(tmp_path / "report.md")
    command = re.search(r"^ calibnorm (compare .*)$", written, re.MULTILINE)
    assert command is not None
    for words in ("--norms iebn bn --baseline bn --noise 0.8,0.5 --noise none --seeds 1", "--train-images 64"):
        assert words in command[1]
    assert "this time" not in written  # nothing was trained
    assert sorted(path.name for path in left.root.glob("*.html")) == ["report.html"]


def test_a_moved_comparison_without_its_tables_is_found_all_the_same(
    left: Left, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(left.root, moved)
    (moved / "results.csv").unlink()
    report(capsys, tmp_path / "page", moved)
    with (tmp_path / "page" / "summary.csv").open() as file:
        assert [(line["row"], line["column"]) for line in csv.DictReader(file)] == [
            (row, norm) for row in ("clean", "noise 0.8,0.5") for norm in ("bn", "iebn")
        ]


def test_a_run_has_its_page(left: Left, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(left.run(), run)
    columns = "step,layer,depth,batch_size,own,own_low,own_high,accumulated,accumulated_low,accumulated_high"
    (run / "noise.csv").write_text(f"{columns}\n1,layer1.0.bn1,2,32,0.1,0,1,0.2,0,1\n", encoding="utf-8")
    assert main(["inspect", str(run), "--layer", "layer2.0.bn2"]) == 0
    screen = capsys.readouterr().out
    assert f"Page: {run / 'report.html'}" in screen
    result = json.loads((run / RESULT).read_text(encoding="utf-8"))
    accuracy = f"{result['test_accuracy']:.2f} %"
    written, page = text(run / "report.md"), text(run / "report.html")
    for each in (screen, written):
        assert f"- test accuracy: {accuracy}" in each
        assert "the gate is 0.26" in re.sub(r"\s+", " ", each) or "the gate is 0.27" in re.sub(r"\s+", " ", each)
        assert "of the variance of an image's loss, the other images make" in re.sub(r"\s+", " ", each)
    assert f"<dd>{accuracy}</dd>" in page
    assert "Layer layer2.0.bn2: the standard deviation, over 599 test images" in written
    assert '<td class="n">0.2</td>' in page  # of noise.csv
    assert "data:image/png;base64," in page
    for name in ("curves.png", "gates.png", "channels.png", "features.png", "noise.png", "noise_over_steps.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG")
    assert "calibnorm train digits-tiny --epochs 1 --batch-size 32 --train-images 64" in written
    assert "- convolutions" not in written
    assert "<dt>torch</dt>" in page
    assert main(["train", *command_words(written), "--out", str(run)]) == 0  # the command is that of the run
    assert "was finished before" in capsys.readouterr().out
    assert report(capsys, tmp_path / "page", run, gates=True).exists()
    anew = text(tmp_path / "page" / "report.md")
    assert without_layer(anew) == without_layer(written) != anew  # report takes the layer whose gate varies most


def without_layer(written: str) -> str:
    return re.sub(r"\n## Channels before.*?(?=\n## Batch noise)", "", written, flags=re.DOTALL)


def command_words(written: str) -> list[str]:
    match = re.search(r"^ calibnorm train (.*)$", written, re.MULTILINE)
    assert match is not None
    return match[1].split()


def test_runs_from_anywhere_stand_side_by_side(left: Left, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    longer = tmp_path / "longer"
    shutil.copytree(left.run(), longer)
    config = json.loads((longer / "config.json").read_text(encoding="utf-8"))
    write_json(longer / "config.json", config | {"weight_decay": 0.5, "seed": 3})
    report(capsys, tmp_path / "page", longer, left.root, gates=True)
    written = text(tmp_path / "page" / "report.md")
    assert "# 5 runs side by side: " in written
    assert "The runs differ in weight_decay, as their names say." in written
    assert "| clean | iebn, weight_decay 0.5 |" in written
    assert "missing" not in written.replace("failed or are missing", "")
    assert "minus bn, weight_decay 0.0001" in written
    assert f"calibnorm report {longer} {left.root}" in written
    assert "calibnorm train digits-tiny" in written
    assert "Learned gates by layer" in written

    for norm in ("bn", "iebn"):
        shutil.copytree(left.run(norm), tmp_path / "digits-tiny" / f"{norm}-seed0")
    report(capsys, tmp_path / "of-a-recipe", tmp_path / "digits-tiny")
    assert "# 2 runs side by side: " in text(tmp_path / "of-a-recipe" / "report.md")

    elsewhere = ["--no-gates", "--out", str(tmp_path / "elsewhere")]
    for out, command in (
        (tmp_path / "elsewhere", ["report", str(longer), str(left.run("bn")), *elsewhere]),
        (tmp_path / "elsewhere", ["report", str(left.root), *elsewhere]),
        (longer, ["inspect", str(longer)]),
    ):
        assert main([*command, "--data-root", str(tmp_path / "my data")]) == 0
        assert f"--data-root '{tmp_path / 'my data'}'" in (out / "report.md").read_text(encoding="utf-8")


def test_networks_that_cannot_be_read_are_said_to_be(
    left: Left, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(left.root, tmp_path / "first")
    for weights in (tmp_path / "first").rglob("last.pt"):
        weights.unlink()
    report(capsys, tmp_path / "page", tmp_path / "first", gates=True)
    assert "The trained networks could not be read." in text(tmp_path / "page" / "report.md")


def test_why_networks_cannot_be_read_is_said_in_options(tmp_path: Path) -> None:
    """Folders of pictures that have moved: what helps is an option, not an argument."""
    recipe = replace(RECIPES["folders-small"], norm="iebn")
    for seed in (0, 1):
        write_json(tmp_path / f"{seed}" / "config.json", replace(recipe, seed=seed).to_dict())
        shutil.copy(Path(__file__).parents[2] / "upgrade/0.1/finished/result.json", tmp_path / f"{seed}")
        shutil.copy(Path(__file__).parents[2] / "upgrade/0.1/finished/metrics.csv", tmp_path / f"{seed}")
    page = ["--data-root", str(tmp_path), "--out", str(tmp_path / "page")]
    assert main(["report", str(tmp_path / "0"), str(tmp_path / "1"), *page]) == 0
    written = text(tmp_path / "page" / "report.md")
    assert "could not be read. --data folders: is missing; " in written
    assert "name the folder that holds train and val as the --data-root" in written


def test_a_bench_has_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    timings = [made("nn.BatchNorm2d", "eval", "1x2x14x14", 4.0), made("cn.RBN2d", "eval", "1x2x14x14", 2.0)]
    write_timings(tmp_path / "layer.csv", timings)
    details = {"command": "calibnorm bench layer", "config": {"ops": ["norm"]}, "wrong_values": ["cn.IEBN2d: no"]}
    write_json(tmp_path / "layer.json", details)
    for place in (tmp_path, tmp_path / "layer.json"):
        page = report(capsys, tmp_path / "page", place)
        assert page == tmp_path / "page" / "layer" / "report.html"
    written = text(page.with_suffix(".md"))
    assert "| eval | 0.50 |" in written
    assert "- WRONG VALUES: cn.IEBN2d: no" in written
    assert "\n calibnorm bench layer --ops norm\n" in written
    (tmp_path / "layer.csv").write_text("op\nnorm\n")
    assert main(["report", str(tmp_path)]) == 2
    assert f"{tmp_path / 'layer.csv'}: is missing or damaged" in capsys.readouterr().err
    assert main(["report", str(tmp_path), str(tmp_path / "page")]) == 2
    assert "stand by themselves" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["report"], "report: needs a word; name runs"),
        (["report", "{out}/nothing"], "{out}/nothing: is not there; name runs"),
        (["report", "{out}/empty"], "{out}/empty: is empty; name runs"),
        (["report", "{out}/foreign"], "{out}/foreign: holds no run (config.json) and no bench's results; name runs"),
        (["report", "{out}/foreign/x.txt"], "{out}/foreign/x.txt: is a file, and no bench's results; name runs"),
        (
            ["report", "{run}", "{out}/unfinished"],
            "{out}/unfinished: is not finished (1 of 1 epochs, no result.json); ",
        ),
        (["report", "{out}/begun"], "{out}/begun: none of its 1 runs is finished; the command that began them"),
        (["report", "{run}", "{out}/again"], "{out}/again: has the settings and the seed of {run}; name one of them"),
        (["report", "{root}", "--out", "{run}/config.json"], "--out {run}/config.json: is a file; name a folder"),
        (["report", "{run}", "--out", "/proc/nothing"], "/proc/nothing: cannot be written ("),
        (["report", "{root}", "--no-gates", "--out", "/proc/nothing"], "--out /proc/nothing: cannot be written ("),
        (
            ["inspect", "{root}"],
            "{root}: is no run's folder, for it has no config.json; name one of its runs, such as ",
        ),
        (["inspect", "{out}/empty"], "{out}/empty: is no run's folder, for it has no config.json; name a run's"),
        (["inspect", "{out}/unfinished"], "{out}/unfinished: is not finished (1 of 1 epochs"),
        (["inspect", "{out}/foreign/x.txt"], "{out}/foreign/x.txt: is no folder; name a run's"),
        (["inspect"], "inspect: needs a word; name a run's folder, such as"),
    ],
)
def test_what_is_wrong_is_named(left: Left, words: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = left.out
    (out / "empty").mkdir(exist_ok=True)
    (out / "foreign").mkdir(exist_ok=True)
    (out / "foreign" / "x.txt").touch()
    for name, removed in (("unfinished", True), ("begun/clean/iebn/seed0", True), ("again", False)):
        shutil.copytree(left.run(), out / name, dirs_exist_ok=True)
        if removed:
            (out / name / RESULT).unlink()
    places = {"out": out, "root": left.root, "run": left.run()}
    assert main([word.format(**places) for word in words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named.format(**places) in line


def test_a_layer_that_is_not_there_is_named_before_the_images_are_read(
    left: Left, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(layers, "read", None)
    assert main(["inspect", str(left.run()), "--layer", "nope"]) == 2
    assert "--layer nope: is no calibrated layer; choose one of bn1, " in capsys.readouterr().err


def test_runs_of_different_tasks_are_no_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(Classification):
        task = "something else"

    recipe = RECIPES["digits-tiny"]
    write_json(tmp_path / "a" / "config.json", recipe.to_dict())
    write_json(tmp_path / "b" / "config.json", {**Other(**vars(recipe)).to_dict()})
    with pytest.raises(Exception, match=r"b: is a run of something else, and .*a of classification"):
        gather([tmp_path / "a", tmp_path / "b"])


def test_the_command_of_a_run_that_no_recipe_is_like() -> None:
    class Alone(Classification):
        task = "alone"

    assert single.train_command(Alone(**vars(RECIPES["digits-tiny"]))) == ""
    noisy = replace(
        RECIPES["digits-deep"], noise=(0.8, 0.5), norm="bn:gamma_init=0.3", nesterov=True, milestones=(2, 3)
    )
    command = "calibnorm train digits-deep --norm bn:gamma_init=0.3 --noise 0.8 0.5 --nesterov"
    assert single.train_command(noisy) == command  # a cosine has no milestones


def test_a_page_is_named_by_what_it_is_of(tmp_path: Path) -> None:
    assert name_of((tmp_path / "bench" / "layer.json",)) == "layer"
    assert name_of((Path("runs/x/clean/bn:gamma=1/seed0"),)) == "clean-bn-gamma=1-seed0"
    assert grid.NOTE == "grid.json"
