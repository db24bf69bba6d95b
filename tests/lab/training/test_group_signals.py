"""Ctrl-C in a terminal and SIGTERM of a batch system come to a run's reading processes too, at any moment."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from lab.training import children
from lab.training.tiny import PICTURES, arguments, assert_same_run, make_pictures, state

TEST_WORKERS = 2
"""Started first, to try the network out; then come those of the training pictures."""


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("sets"))


def words(folder: Path, sets: Path) -> list[str]:
    return [*arguments(PICTURES, folder), "--data-root", str(sets), "--workers", "2"]


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
