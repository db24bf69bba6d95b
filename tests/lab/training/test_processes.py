"""Several processes: with synchronized statistics they train what one process trains on all images."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from calibnorm.lab.recipes import Recipe
from lab.processes import is_there
from lab.training import children
from lab.training.tiny import RICH, STEPS, TINY, arguments, assert_same_run, run, state


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def pair(
    recipe: Recipe,
    folder: Path,
    kill: tuple[int, int] | None = None,
    more: tuple[str, ...] = (),
    target: Callable[..., int] = children.rank,
) -> tuple[list[int | None], list[str]]:
    """Return the exit statuses and outputs of two ranks; a signal goes to the second alone."""
    port, args = free_port(), [*arguments(recipe, folder), *more]
    outputs = [folder.with_name(f"{folder.name}-{rank}") for rank in range(2)]
    ranks = [(rank, 2, port, args, kill if rank == 1 else None) for rank in range(2)]
    return children.together(target, ranks, outputs), [path.read_text(encoding="utf-8") for path in outputs]


def pair_of_ranks(target: Callable[..., int], *arguments: Any) -> tuple[list[int | None], list[str]]:
    """Return the exit statuses and outputs of two ranks of a run; the last argument is its folder."""
    port, folder = free_port(), arguments[-1]
    outputs = [folder.with_name(f"{folder.name}-{rank}") for rank in range(2)]
    ranks = [(rank, 2, port, *arguments) for rank in range(2)]
    return children.together(target, ranks, outputs), [path.read_text(encoding="utf-8") for path in outputs]


@pytest.mark.parametrize("norm", ["bn", "iebn"])  # the shortcuts of "iebn" are plain
def test_two_processes_train_what_one_does(norm: str, tmp_path: Path) -> None:
    recipe = replace(TINY, norm=norm, epochs=1, learning_rate=0.01)
    statuses, said = pair(recipe, tmp_path / "two")
    assert statuses == [0, 0], said
    assert said[0].startswith("epoch 1/1"), "Lightning does not introduce itself"
    assert said[0].count("epoch 1/1") == 1
    assert said[1] == "", "only the first process speaks"
    run(recipe, tmp_path / "one")
    names = {name.replace(".bn.", "."): value for name, value in state(tmp_path / "two")["network"].items()}
    assert len(names) == len(state(tmp_path / "one")["network"])
    for name, value in state(tmp_path / "one")["network"].items():
        # Sums over half batches are added in another order; four steps carry that on.
        torch.testing.assert_close(names[name.replace(".bn.", ".")], value, rtol=1e-3, atol=1e-4)
    rows = [
        (tmp_path / name / "metrics.csv").read_text(encoding="utf-8").splitlines()[1].split(",")
        for name in ("two", "one")
    ]
    two, one = (list(map(float, row)) for row in rows)
    assert two == pytest.approx(one, rel=0.02)


def test_a_signal_to_one_process_stops_both_and_both_go_on(tmp_path: Path) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert pair(RICH, whole)[0] == [0, 0]
    statuses, said = pair(RICH, folder, (signal.SIGTERM, STEPS + 2))
    assert statuses == [143, 143], said
    assert "stopped in epoch 2 after 2 steps of it" in said[0]
    assert said[1] == ""
    statuses, said = pair(RICH, folder)
    assert statuses == [0, 0], said
    assert_same_run(folder, whole)


@pytest.mark.parametrize("ema", [None, 0.5])
def test_without_synchronization_both_test_the_network_of_the_first(ema: float | None, tmp_path: Path) -> None:
    recipe = replace(TINY, epochs=1, sync_statistics=False, ema=ema)
    statuses, said = pair(recipe, tmp_path / "run", target=children.rank_that_says_what_it_tests)
    assert statuses == [0, 0], said
    tested = [[line for line in text.splitlines() if line.startswith("tested ")] for text in said]
    assert len(tested[0]) == 1
    assert tested[0] == tested[1]
    run(replace(TINY, epochs=1, ema=ema), tmp_path / "one")
    name = "bn1.bn.running_mean"
    ours, one = (best(tmp_path / folder)[name] for folder in ("run", "one"))
    assert not torch.allclose(ours, one, rtol=1e-5), "not synchronized"
    torch.testing.assert_close(ours, one, rtol=0.3, atol=0.05)


def best(folder: Path) -> dict[str, torch.Tensor]:
    network: dict[str, torch.Tensor] = torch.load(folder / "best.pt", weights_only=True)["network"]
    return network


@pytest.mark.parametrize(
    ("change", "more", "named"),
    [
        ({"batch_size": 63}, (), "--batch-size 63: 2 processes cannot share it equally"),
        ({}, ("--override", "seed"), "--override seed"),
    ],
)
def test_errors_end_both_and_are_said_once(
    change: dict[str, int], more: tuple[str, ...], named: str, tmp_path: Path
) -> None:
    statuses, said = pair(replace(TINY, **change), tmp_path / "run", more=more)
    assert statuses == [2, 2], said
    assert named in said[0]
    assert said[1] == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("moment", ["start", "load"])
def test_an_error_of_the_second_process_alone_is_said(moment: str, tmp_path: Path) -> None:
    target = children.rank_that_cannot_start if moment == "start" else children.rank_that_cannot_load
    if moment == "start":  # by itself: the first would wait for it
        output = tmp_path / "said"
        assert children.together(target, [(1, 2, free_port(), arguments(TINY, tmp_path / "run"))], [output]) == [2]
        assert output.read_text(encoding="utf-8") == "calibnorm: process 1: no images here\n"
        return
    statuses, said = pair(TINY, tmp_path / "run", target=target)
    assert statuses == [2, 2], said
    assert said == ["calibnorm: process 1: no images here\n", ""]
    assert not (tmp_path / "run").exists()


def torchrun(*args: str) -> list[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    return [*command, str(free_port()), "-m", "calibnorm", *args]


@pytest.mark.nightly
def test_torchrun_and_devices_start_the_same(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    recipe = replace(TINY, epochs=1)
    subprocess.run(torchrun(*arguments(recipe, tmp_path / "torchrun")), check=True, env=environment, timeout=120)
    own = [sys.executable, "-m", "calibnorm", *arguments(recipe, tmp_path / "devices"), "--devices", "2"]
    subprocess.run(own, check=True, env=environment, timeout=120)
    assert_same_run(tmp_path / "devices", tmp_path / "torchrun")


@pytest.mark.nightly
def test_a_killed_rank_ends_all_soon_and_the_run_goes_on(tmp_path: Path) -> None:
    recipe = replace(TINY, epochs=20)
    command = torchrun(*arguments(recipe, tmp_path / "run"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, start_new_session=True) as process:
        metrics = tmp_path / "run" / "metrics.csv"
        while not metrics.exists():
            assert process.poll() is None
            time.sleep(0.1)
        ranks = subprocess.run(
            ["pgrep", "-P", str(process.pid)], check=True, capture_output=True, text=True
        ).stdout.split()
        os.kill(int(ranks[1]), signal.SIGKILL)
        assert process.wait(30) != 0
    assert not is_there(process.pid)  # nobody is left
    subprocess.run(torchrun(*arguments(recipe, tmp_path / "run")), check=True, env=environment, timeout=300)
    assert len(metrics.read_text(encoding="utf-8").splitlines()) == 21
