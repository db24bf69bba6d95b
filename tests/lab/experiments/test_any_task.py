"""A comparison of a task that the package does not have: less is better, no percentages, nothing known of chance."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import pytest
from PIL import Image
from rich.console import Console

import calibnorm
from calibnorm.lab.experiments import compare
from calibnorm.lab.experiments.config import CompareConfig
from calibnorm.lab.recipes import RECIPES
from lab import calling
from lab.tasks.angles import Angles

RECIPE = Angles(model="of its own", data="digits", epochs=1, batch_size=128, learning_rate=0.01)
NORMS = ("bn", "iebn")


@dataclass
class Compared:
    root: Path
    screen: str

    def lines(self, name: str) -> list[dict[str, str]]:
        with (self.root / name).open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    @property
    def report(self) -> str:
        return re.sub(" +", " ", (self.root / "report.md").read_text(encoding="utf-8"))


def compared(out: Path, jobs: int) -> Compared:
    with pytest.MonkeyPatch.context() as patch, open(out / "screen", "w+", encoding="utf-8") as screen:
        patch.setitem(RECIPES, "angles", RECIPE)
        config = CompareConfig(recipe="angles", norms=NORMS, seeds=3, jobs=jobs, accelerator="cpu", out=out)
        assert compare.run(config, Console(file=screen, width=80)) == 0
        screen.seek(0)
        return Compared(out / "angles", screen.read())


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    return compared(tmp_path_factory.mktemp("here"), 0)


def test_its_figures_are_in_both_tables(done: Compared) -> None:
    results, summary = done.lines("results.csv"), done.lines("summary.csv")
    assert list(results[0])[4:7] == ["test_angle_error", "best_test_angle_error", "test_loss"]
    errors = {norm: [float(r["test_angle_error"]) for r in results if r["column"] == norm] for norm in NORMS}
    assert all(0 < error < RECIPE.widest for of in errors.values() for error in of)
    for line in summary:
        of, base = errors[line["column"]], errors["bn"]
        assert float(line["mean"]) == pytest.approx(mean(of), abs=1e-4)
        assert float(line["std"]) == pytest.approx(stdev(of), abs=1e-4)
        assert line["at_chance"] == "0"
        if line["column"] != "bn":
            differences = [error - other for error, other in zip(of, base, strict=True)]
            assert float(line["difference"]) == pytest.approx(mean(differences), abs=1e-4)
            # Less is better: a negative difference is won.
            assert int(line["wins"]) == sum(d < 0 for d in differences)
            assert int(line["losses"]) == sum(d > 0 for d in differences)
            assert f"{int(line['wins'])} of 3 |" in done.report


def test_the_report_and_the_screen_speak_its_words(done: Compared) -> None:
    errors = [float(r["test_angle_error"]) for r in done.lines("results.csv") if r["column"] == "iebn"]
    for text in (done.report, done.screen):
        assert "angle error (rad)" in text
        assert f"{mean(errors):.3f} ± {stdev(errors):.3f}" in text
        assert " ".join(f"{error:.2f}" for error in errors) in text
    for text in ("Angle errors are those after the last epoch", "Less is better", "![Test angle error of every run]"):
        assert text in done.report
    assert "![Test angle error and training loss over epochs](curves.png)" in done.report
    assert '"Failed" is a run whose loss stopped being finite' in done.report  # nothing is known of chance
    for word in ("accurac", "%  |", "guessing"):
        assert word not in done.report
    for name in ("angle_errors.png", "curves.png"):
        with Image.open(done.root / name) as image:
            assert min(image.size) > 300


def test_processes_give_the_same(done: Compared, tmp_path: Path) -> None:
    again = compared(tmp_path, 2)
    for name in ("results.csv", "summary.csv"):
        timed = [[{k: v for k, v in line.items() if k != "seconds"} for line in of.lines(name)] for of in (done, again)]
        assert timed[0] == timed[1]


def test_a_setting_of_another_task_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(RECIPES, "angles", RECIPE)
    assert calling.main(["compare", "angles", "--momentum", "0.5", "--out", str(tmp_path)]) == 2
    assert "--momentum 0.5: is not known" in capsys.readouterr().err


def test_nothing_that_compares_knows_it() -> None:
    root = Path(calibnorm.__file__).parent
    sources = [*(root / "lab/experiments").rglob("*.py"), *(root / "report").rglob("*.py")]
    assert len(sources) > 20
    assert [path for path in sources if "angle" in path.read_text(encoding="utf-8")] == []
