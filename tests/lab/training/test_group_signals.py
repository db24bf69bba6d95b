"""Ctrl-C in a terminal and SIGTERM of a batch system come to a run's reading processes too, at any moment."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calibnorm.lab.recipes import Recipe
from lab.training import children
from lab.training.tiny import arguments, assert_same_run, state

RECIPE = Recipe(model="resnet11", data="folders", epochs=2, image_size=16, batch_size=4, norm="iebn")
TEST_WORKERS = 2
"""Started first, to try the network out; then come those of the training pictures."""


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of six training pictures and two test pictures each."""
    root = tmp_path_factory.mktemp("sets")
    draw = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 2)):
        for label, name in enumerate(("cat", "dog")):
            folder = root / "folders" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(60 * label, 60 * label + 100, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def words(folder: Path, sets: Path) -> list[str]:
    return [*arguments(RECIPE, folder), "--data-root", str(sets), "--workers", "2"]


@pytest.fixture(scope="module")
def whole(sets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert children.run(children.command, words(folder, sets)) == 0
    return folder


@pytest.mark.parametrize(
    ("number", "birth"), [(signal.SIGINT, 1), (signal.SIGINT, TEST_WORKERS + 1), (signal.SIGTERM, TEST_WORKERS + 2)]
)
def test_a_signal_to_the_group_at_a_workers_birth_stops_the_run_saved(
    tmp_path: Path, sets: Path, whole: Path, number: signal.Signals, birth: int
) -> None:
    folder, output = tmp_path / "run", tmp_path / "output"
    status = children.run(children.command_in_a_group, words(folder, sets), number, birth, output=output)
    said = output.read_text()
    assert status == 128 + number, said
    assert said.strip().endswith(f"after 1 steps of it; the same command goes on from there ({folder})")
    assert state(folder)["progress"]["step"] == 1
    if (number, birth) == (signal.SIGINT, TEST_WORKERS + 1):
        assert children.run(children.command, words(folder, sets)) == 0
        assert_same_run(folder, whole)
