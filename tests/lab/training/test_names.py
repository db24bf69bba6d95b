"""A run's weights have the names of its recipe's network, whatever number of processes trained them."""

from __future__ import annotations

import re
import signal
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from calibnorm.errors import UsageError, as_option
from calibnorm.lab import tasks
from calibnorm.lab.training.learner import Learner, check_statistics, synchronizable, unwrapped
from lab.training.test_processes import pair
from lab.training.tiny import STEPS, TINY, Interrupting, feeds, network, run, state


@pytest.mark.parametrize("norm", ["bn", "iebn"])  # the shortcuts of "iebn" are plain
def test_layers_made_synchronizable_save_and_load_by_their_plain_names(norm: str) -> None:
    recipe = replace(TINY, norm=norm)
    plain, ours = network(recipe), network(recipe)
    wrapped = synchronizable(ours)
    assert list(ours.state_dict()) != list(plain.state_dict())
    for tensor in ours.state_dict().values():
        tensor += 1
    saved = unwrapped(ours.state_dict(), wrapped)
    assert list(saved) == list(plain.state_dict())
    assert saved._metadata.keys() <= plain.state_dict()._metadata.keys()  # type: ignore[attr-defined]
    plain.load_state_dict(saved)
    assert all(
        torch.equal(value, other) for value, other in zip(saved.values(), plain.state_dict().values(), strict=True)
    )
    again = network(recipe)
    wrapped = synchronizable(again)
    again.load_state_dict(saved)
    for name, tensor in unwrapped(again.state_dict(), wrapped).items():
        assert torch.equal(tensor, saved[name]), name


def test_one_process_goes_on_where_two_were_and_they_where_one_was(tmp_path: Path) -> None:
    recipe, folder = replace(TINY, norm="bn", ema=0.5, learning_rate=0.01), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(recipe, folder, checkpoint_minutes=0.0, watcher=Interrupting(2))
    first = state(folder)
    statuses, said = pair(recipe, folder, (signal.SIGTERM, STEPS))
    assert statuses == [143, 143], said
    assert "going on after step" in said[0]
    second = state(folder)
    assert list(second["network"]) == list(first["network"]) == list(second["average"]["network"])
    assert second["progress"]["step"] > STEPS
    run(recipe, folder)
    run(recipe, tmp_path / "one")
    best = torch.load(folder / "last.pt", weights_only=True)["network"]
    network(recipe).load_state_dict(best)
    for name, expected in state(tmp_path / "one")["network"].items():
        torch.testing.assert_close(state(folder)["network"][name], expected, rtol=1e-2, atol=1e-3)


def test_ghost_batches_are_refused_where_statistics_are_shared(tmp_path: Path) -> None:
    recipe = replace(TINY, norm="ghost:size=8", epochs=1)
    statuses, said = pair(recipe, tmp_path / "run")
    assert statuses == [2, 2], said
    assert said[0].startswith("calibnorm: --norm ghost:size=8: ghost batches are small on purpose")
    assert said[0].count("\n") == 1
    assert said[1] == ""
    assert not (tmp_path / "run").exists()


def test_ghost_batches_are_a_matter_of_each_process() -> None:
    recipe = replace(TINY, norm="ghost:size=8")
    ghosts = network(recipe)
    tasks.of(recipe).try_out(ghosts, feeds(recipe))
    check_statistics(recipe, ghosts, 1)
    check_statistics(replace(recipe, sync_statistics=False), ghosts, 2)
    with pytest.raises(UsageError) as caught:
        check_statistics(recipe, ghosts, 2)
    assert re.search(r"norm=ghost:size=8: .* add sync_statistics=False", str(caught.value))
    assert re.search(r"--norm ghost:size=8: .* add --no-sync-statistics", caught.value.words(as_option))


def test_weights_are_saved_as_a_machine_without_a_gpu_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = torch.ones(2)
    there: Any = OrderedDict(weight=SimpleNamespace(cpu=lambda: here))
    learner: Any = SimpleNamespace(tested=SimpleNamespace(state_dict=lambda: there), _wrapped=[])
    assert Learner.weights(learner) == {"weight": here}
    monkeypatch.setattr(Learner, "weights", lambda self: {"weight": here})
    run(replace(TINY, epochs=1), tmp_path / "run")
    for name in ("best.pt", "last.pt"):
        assert list(torch.load(tmp_path / "run" / name, weights_only=True)["network"]) == ["weight"]
