"""The batch noise and the gates while a network trains: what is written, and that the run does not notice."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from calibnorm.errors import UsageError
from calibnorm.lab.training import noise
from calibnorm.lab.training.command import RunOptions
from calibnorm.lab.training.noise import NoiseWatch
from calibnorm.lab.training.watchers import Board, Several
from lab.training.tiny import RICH, TINY, Interrupting, assert_same_run, feeds, network, run

pytestmark = pytest.mark.untraced


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "PROBES", 3)
    monkeypatch.setattr(noise, "POOL", 16)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "noise.csv").open(encoding="utf-8", newline="") as file:
        return [*csv.DictReader(file)]


def test_a_run_that_is_measured_and_stopped_is_the_run_that_is_not(tmp_path: Path, undisturbed: Path) -> None:
    recipe, whole, stopped = RICH, tmp_path / "whole", tmp_path / "stopped"
    run(recipe, whole, watcher=NoiseWatch(whole, 3, 8))
    assert_same_run(whole, undisturbed)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, stopped, watcher=Several([NoiseWatch(stopped, 3, 8), Interrupting(6)]))
    with (stopped / "noise.csv").open("a", encoding="utf-8") as file:
        file.write("6,layer1.0.bn1,2")  # half a line
    run(recipe, stopped, watcher=NoiseWatch(stopped, 3, 8))
    assert_same_run(stopped, undisturbed)
    assert rows(stopped) == rows(whole)
    assert {row["step"] for row in rows(whole)} == {"3", "6"}
    first = rows(whole)[0]
    assert 0 < float(first["own_low"]) < float(first["own"]) < float(first["own_high"]) < 0.1
    assert rows(whole)[-1]["layer"] == "(loss)"
    run(replace(recipe, seed=1), other := tmp_path / "other", watcher=NoiseWatch(other, 50, 8))
    assert rows(other) == []


def test_tensorboard_shows_noise_and_gates(tmp_path: Path) -> None:
    board = Board(tmp_path)
    run(replace(TINY, epochs=1), tmp_path, watcher=Several([NoiseWatch(tmp_path, 2, 8, board.scalars), board]))
    seen = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = seen.Tags()
    assert "gate/layer1.0.bn1" in tags["histograms"]
    (gates,) = seen.Histograms("gate/layer1.0.bn1")
    # 64 images of 16 channels, whose gates started at 0.269.
    assert (gates.step, gates.histogram_value.num) == (1, 64 * network(TINY).get_submodule("layer1.0.bn1").num_features)
    assert 0.2 < gates.histogram_value.sum / gates.histogram_value.num < 0.35
    assert [event.step for event in seen.Scalars("batch noise, own/layer1.0.bn1")] == [2, 4]
    read = {row["layer"]: float(row["accumulated"]) for row in rows(tmp_path) if row["step"] == "4"}
    assert seen.Scalars("batch noise, accumulated/(loss)")[-1].value == pytest.approx(read["(loss)"], rel=1e-5)


def test_where_it_cannot_be_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="noise_every=0: must be at least 1"):
        RunOptions(noise_every=0)
    watch = NoiseWatch(tmp_path, 3, 8)
    with pytest.raises(UsageError, match="noise_every: cannot be measured here: images must be batches of images"):
        watch.meet(network(TINY), [{"pixels": torch.zeros(2, 1, 8, 8)}])  # type: ignore[arg-type]
    watch.meet(network(TINY), feeds(TINY).test)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    with pytest.raises(UsageError, match="noise_every: measures in one process, and this run has several"):
        watch.meet(network(TINY), feeds(TINY).test)
