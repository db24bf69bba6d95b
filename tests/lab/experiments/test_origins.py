"""What a report says of the commits and machines that its runs were trained with."""

from __future__ import annotations

import json
from pathlib import Path

from calibnorm.lab.data.contents import Contents, Part
from calibnorm.lab.experiments.grid import Cell, Grid
from calibnorm.lab.experiments.origins import made_with, of_run
from calibnorm.lab.recipes import Classification
from calibnorm.lab.training.folder import note_environment
from calibnorm.report.document import Document
from calibnorm.report.environment import describe_environment
from calibnorm.report.markdown import markdown


def written(seconds: float, grid: Grid) -> str:
    return markdown(Document("", made_with("calibnorm compare x", seconds, grid)))


def make(root: Path, *environments: dict[str, object] | None) -> Grid:
    """Return a grid of a run for each environment, begun, and of one that has not begun."""
    recipe = Classification(model="resnet11", data="digits", epochs=1)
    grid = Grid(root, [Cell("clean", "bn", recipe, Path("bn"))], range(len(environments) + 1))
    for run, environment in zip(grid.runs(), environments, strict=False):
        run.folder.mkdir(parents=True)
        (run.folder / "config.json").write_text(json.dumps(run.recipe.to_dict()))
        if environment is not None:
            (run.folder / "environment.json").write_text(json.dumps(environment))
    return grid


def test_the_commits_of_the_runs_are_named_and_the_reports_own_beside_them(tmp_path: Path) -> None:
    now = describe_environment()
    old = now | {"commit": "c0ffee" * 6, "cpu": "Abacus", "device": "cuda:0"}
    text = written(3.0, make(tmp_path, now, old, old, None))
    assert f"- 2 runs trained with calibnorm {now['calibnorm']} (commit {'c0ffee' * 6}), torch {now['torch']}" in text
    assert "on Abacus with" in text
    assert ", device cuda:0." in text
    assert f"- 1 run trained with calibnorm {now['calibnorm']}" in text
    assert "- 1 run trained where nothing was noted." in text
    assert "- This report was written with calibnorm" in text
    assert "\n    calibnorm compare x\n\nIt took 3 s this time" in text


def test_the_report_says_nothing_of_itself_where_it_was_made_as_the_runs_were(tmp_path: Path) -> None:
    text = written(3.0, make(tmp_path, describe_environment()))
    assert text.count("trained with") == 1
    assert "written with" not in text


def test_what_the_runs_were_trained_on_stands_there_once(tmp_path: Path) -> None:
    grid = make(tmp_path, None, None)
    part = Part({"cat": 3, "dog": 5}, {}, {"hidden": (2, ".cache")})
    for run in grid.runs()[:2]:
        (run.folder / "data.json").write_text(json.dumps(Contents("folders", ("cat", "dog"), part, part).to_dict()))
    text = written(3.0, grid)
    images = "8 (3 to 5 a class)"
    assert text.count(f"- folders: 2 classes, training images {images}, test images {images}.") == 1
    assert text.count("- folders: left out of test: 2 hidden (such as .cache).") == 1


def test_a_run_that_went_on_elsewhere_is_of_two_commits(tmp_path: Path) -> None:
    run = make(tmp_path, None).runs()[0]
    first = {"commit": "aaa", "cpu": "Abacus"}
    for now in (first, first | {"threads": 2}, first | {"commit": "bbb", "threads": 2}):
        note_environment(run.folder, now)
    before, after = of_run(run).split("; then ")  # of the threads nothing is said
    assert "(commit aaa)" in before
    assert "(commit bbb)" in after
    assert "on Abacus" in after
