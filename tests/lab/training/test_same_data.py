"""A run goes on, is tested and is compared with the data that it was trained on, and with no others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from calibnorm.errors import UsageError
from calibnorm.lab.experiments.checks import check
from calibnorm.lab.experiments.grid import Run
from calibnorm.lab.recipes import Recipe
from calibnorm.lab.training import train
from calibnorm.lab.training.checkpoints import Checkpoints
from calibnorm.lab.training.command import main
from calibnorm.lab.training.trained import trained
from calibnorm.lab.training.watchers import Watcher
from lab.training.tiny import PICTURES, TINY, Interrupting, assert_same_run, make_pictures, state
from lab.training.tiny import run as train_tiny

NAMES = ("cat", "dog", "owl")


def go(folder: Path, root: Path, recipe: Recipe = PICTURES, watcher: Watcher | None = None) -> None:
    train(recipe, folder, data_root=root, accelerator="cpu", workers=0, checkpoint_minutes=0, watcher=watcher)


def stopped(folder: Path, root: Path, steps: int = 6) -> None:
    with pytest.raises(KeyboardInterrupt):
        go(folder, root, watcher=Interrupting(steps))


def rename_class(pictures: Path) -> None:
    for part in ("train", "val"):
        (pictures / part / "dog").rename(pictures / part / "pug")


def add_class(pictures: Path) -> None:
    for part in ("train", "val"):
        shutil.copytree(pictures / part / "dog", pictures / part / "pug")


def remove_class(pictures: Path) -> None:
    for part in ("train", "val"):
        shutil.rmtree(pictures / part / "dog")


def add_picture(pictures: Path) -> None:
    shutil.copy(pictures / "train" / "dog" / "1.png", pictures / "train" / "dog" / "new.png")


def remove_test_picture(pictures: Path) -> None:
    (pictures / "val" / "owl" / "1.png").unlink()


CHANGES = [
    (rename_class, "class 'dog' is gone, class 'pug' is new"),
    (add_class, "class 'pug' is new"),
    (remove_class, "class 'dog' is gone"),
    (add_picture, "class 'dog' had 6 training images and has 7"),
    (remove_test_picture, "class 'owl' had 2 test images and has 1"),
]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stopped run, `run`, a finished one, `whole`, and the pictures of both, `folders`: copied by each test."""
    root = make_pictures(tmp_path_factory.mktemp("begun"))
    stopped(root / "run", root)
    go(root / "whole", root)
    return root


@pytest.fixture
def there(begun: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "there"))


@pytest.mark.parametrize(("change", "difference"), CHANGES)
def test_a_run_does_not_go_on_with_other_data(there: Path, change: Callable[[Path], None], difference: str) -> None:
    change(there / "folders")
    before = {path: path.read_bytes() for path in (there / "run").rglob("*") if path.is_file()}
    remedy = "put it back as it was, or choose another folder"
    with pytest.raises(UsageError) as error:
        go(there / "run", there)
    assert str(error.value) == (
        f"data=folders: is not what the run in {there / 'run'} was trained on: {difference}; {remedy}"
    )
    assert {path: path.read_bytes() for path in (there / "run").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("change", "difference"), CHANGES)
def test_a_finished_run_is_not_compared_or_tested_with_other_data(
    there: Path, change: Callable[[Path], None], difference: str
) -> None:
    runs = [Run(replace(PICTURES, seed=seed), there / name) for seed, name in enumerate(["whole", "missing"])]
    check(runs, there, "cpu")
    change(there / "folders")
    with pytest.raises(UsageError, match=f"whole was trained on: {difference}; choose another folder, or remove"):
        check(runs, there, "cpu")
    with pytest.raises(UsageError, match=f"whole was trained on: {difference}; put it back as it was"):
        trained(there / "whole", there).__enter__()


def test_the_checkpoint_knows_where_the_folder_does_not_say(there: Path) -> None:
    (there / "run" / "data.json").unlink()
    add_picture(there / "folders")
    with pytest.raises(UsageError, match="class 'dog' had 6 training images and has 7"):
        go(there / "run", there)


def test_a_run_of_several_starts_that_moves_to_another_disk(there: Path, tmp_path: Path) -> None:
    shutil.move(there / "folders", tmp_path / "disk" / "folders")
    stopped(there / "run", tmp_path / "disk", 1)
    go(there / "run", tmp_path / "disk")
    assert_same_run(there / "run", there / "whole")


def test_a_run_of_before_goes_on(there: Path) -> None:
    """Neither its folder nor its checkpoints say what it was trained on."""
    (there / "run" / "data.json").unlink()
    for path in (there / "run" / "checkpoints").iterdir():
        path.unlink()
    whole = state(there / "whole")
    content = {name: value for name, value in whole.items() if name != "data"}
    Checkpoints(there / "run" / "checkpoints", print).save(content, content["progress"]["step"])
    go(there / "run", there)
    assert json.loads((there / "run" / "data.json").read_text())["classes"] == list(NAMES)
    assert torch.equal(state(there / "run")["network"]["fc.weight"], whole["network"]["fc.weight"])


def test_a_run_without_a_checkpoint_begins_anew(there: Path) -> None:
    """Such as one that a damaged picture ended, which was then removed as the error says."""
    shutil.rmtree(there / "run" / "checkpoints")
    add_picture(there / "folders")
    go(there / "run", there)
    assert json.loads((there / "run" / "data.json").read_text())["train"]["images"]["dog"] == 7


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"data": "folders"}'])
def test_a_damaged_note_is_named(there: Path, text: str) -> None:
    (there / "run" / "data.json").write_text(text)
    with pytest.raises(UsageError, match=r"run/data\.json: is damaged .*; remove it, if you know"):
        go(there / "run", there)


def test_the_names_of_the_outputs(there: Path, tmp_path: Path) -> None:
    with trained(there / "whole", there) as of:
        assert of.outputs == NAMES
    assert torch.load(there / "whole" / "best.pt", weights_only=True)["classes"] == list(NAMES)
    train_tiny(replace(TINY, epochs=1), tmp_path / "digits")
    for name in ("best.pt", "last.pt"):
        found = torch.load(tmp_path / "digits" / name, weights_only=True)["classes"]
        assert found == [str(digit) for digit in range(10)]
    assert json.loads((tmp_path / "digits" / "data.json").read_text())["train"]["images"]["0"] > 20


def test_the_command_says_what_is_read_and_how_to_go_on(
    there: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"model": "resnet11", "epochs": 1, "batch-size": 4, "image-size": 16, "warmup-epochs": 0}
    options |= {"accelerator": "cpu", "workers": 0, "data-root": there}
    words = ["folders-small", *(f"--{name}={value}" for name, value in options.items()), "--no-progress"]
    monkeypatch.chdir(there)
    (there / "folders" / "val" / "dog" / "notes.txt").write_text("a note")
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "folders: 3 classes, training images 18 (6 a class), test images 6 (2 a class)",
        "folders: left out of test: 1 without a picture's ending (such as dog/notes.txt)",
    ]
    add_picture(there / "folders")
    with pytest.raises(UsageError, match="or choose another folder with --name or --out"):
        main([*words, "--epochs=2", "--override=epochs"])
