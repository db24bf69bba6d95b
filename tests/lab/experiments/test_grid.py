"""The order of runs, their folders, and what a folder that is already there may hold."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from calibnorm.errors import UsageError
from calibnorm.lab.experiments import grid as grids
from calibnorm.lab.experiments.grid import Cell, Grid, check_folder, conditions
from calibnorm.lab.naming import slug
from calibnorm.lab.recipes import Classification, Recipe
from calibnorm.lab.training.folder import CONFIG

RECIPE = Classification(model="resnet11", data="digits", epochs=1)


def make(root: Path, recipe: Recipe = RECIPE, norms: tuple[str, ...] = ("bn", "iebn"), seeds: int = 3) -> Grid:
    cells = [
        Cell(row, norm, replace(of, norm=norm), Path(slug(row), slug(norm)))
        for row, of in conditions(recipe, ["none", "0.5,0.2"])
        for norm in norms
    ]
    return Grid(root, cells, range(seeds), {"clean": "bn", "noise 0.5,0.2": "bn"})


def test_runs_are_seed_by_seed(tmp_path: Path) -> None:
    runs = make(tmp_path).runs()
    assert [(r.recipe.seed, r.recipe.noise, r.recipe.norm) for r in runs] == [
        (seed, noise, norm) for seed in range(3) for noise in (None, (0.5, 0.2)) for norm in ("bn", "iebn")
    ]
    assert runs[3].folder == tmp_path / "noise_0.5,0.2" / "iebn" / "seed0"
    assert runs[3].lock.parent == runs[3].log.parent == runs[3].folder.parent


def test_equal_recipes_are_trained_once(tmp_path: Path) -> None:
    cells = [
        Cell("operator", "linear", replace(RECIPE, norm="iebn"), Path("operator/linear")),
        Cell("position", "gamma", replace(RECIPE, norm="iebn"), Path("position/gamma")),
        Cell("position", "beta", replace(RECIPE, norm="iebn:position=beta"), Path("position/beta")),
    ]
    grid = Grid(tmp_path, cells, range(2))
    places = [run.folder.relative_to(tmp_path).as_posix() for run in grid.runs()]
    assert places == ["operator/linear/seed0", "position/beta/seed0", "operator/linear/seed1", "position/beta/seed1"]
    assert grid.run(cells[1], 1) == grid.run(cells[0], 1)
    assert grid.rows == ["operator", "position"]
    assert grid.columns() == ["linear", "gamma", "beta"]
    assert grid.columns("position") == ["gamma", "beta"]


def test_different_runs_never_share_a_folder(tmp_path: Path) -> None:
    cells = [Cell("clean", "a:b", replace(RECIPE, norm="bn"), Path(slug("a:b")))]
    cells.append(Cell("clean", "A_b", replace(RECIPE, norm="iebn"), Path(slug("A_b"))))
    with pytest.raises(UsageError, match=r"two different runs would share the folder A_b"):
        Grid(tmp_path, cells, range(1))


@pytest.mark.parametrize("noise", ["0.5", "a,b", "0.5,0.2,0.1", "0,0.5", "inf,1", "nan,1", "1,nan", ""])
def test_wrong_noise_is_named(noise: str) -> None:
    with pytest.raises(UsageError, match=f"noise={noise}: "):
        list(conditions(RECIPE, [noise]))


def test_a_condition_twice() -> None:
    with pytest.raises(UsageError, match=r"noise=0.50,.2: is there twice"):
        list(conditions(RECIPE, ["0.5,0.2", "0.50,.2"]))


def write_config(grid: Grid, number: int, **changes: object) -> Path:
    run = grid.runs()[number]
    run.folder.mkdir(parents=True)
    (run.folder / CONFIG).write_text(json.dumps({**run.recipe.to_dict(), **changes}))
    return run.folder


def test_a_changed_setting_is_refused_by_name(tmp_path: Path) -> None:
    grid = make(tmp_path)
    write_config(grid, 0)
    check_folder(grid)
    folder = write_config(grid, 5, learning_rate=0.05)
    with pytest.raises(UsageError, match=rf"learning_rate=0.1: {folder} was trained with 0.05"):
        check_folder(grid)


def test_a_setting_of_a_later_version_counts_as_its_default(tmp_path: Path) -> None:
    grid = make(tmp_path)
    folder = write_config(grid, 0)
    settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    del settings["image_size"]
    (folder / CONFIG).write_text(json.dumps(settings))
    check_folder(grid)
    (folder / CONFIG).write_text(json.dumps({**settings, "colour": "red"}))
    with pytest.raises(UsageError, match="colour"):
        check_folder(grid)
    (folder / CONFIG).write_text("{")
    with pytest.raises(UsageError, match="is damaged"):
        check_folder(grid)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    assert grids.read_note(tmp_path / "none", "calibnorm compare") is None
    assert grids.read_note(tmp_path, "calibnorm compare") is None
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds what `calibnorm compare` did not write"):
        grids.read_note(tmp_path, "calibnorm compare")
    with pytest.raises(UsageError, match=r"thesis.txt: is a file; name a folder"):
        grids.read_note(tmp_path / "thesis.txt", "calibnorm compare")
    grids.write_note(tmp_path / "new", {"command": "calibnorm table"})
    with pytest.raises(UsageError, match="did not write"):
        grids.read_note(tmp_path / "new", "calibnorm compare")
    assert grids.read_note(tmp_path / "new", "calibnorm table") == {"command": "calibnorm table"}
    with pytest.raises(UsageError, match="cannot be written"):
        grids.write_note(tmp_path / "thesis.txt" / "below", {})
