"""Checkpoints and folders: damage is found out, nothing is executed, a full disk costs nothing that was there."""

from __future__ import annotations

import json
import os
import pickle
import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from calibnorm.errors import RunFailed, UsageError
from calibnorm.lab import tasks
from calibnorm.lab.training import folder as folders
from calibnorm.lab.training.checkpoints import Checkpoints, digest
from calibnorm.lab.training.watchers import Several, Watcher
from lab.training.tiny import RICH, STEPS, TINY, Interrupting, assert_same_run, row, run

CONTENT = {"network": {"weight": torch.arange(1000.0)}, "step": 1}


class Listening(Watcher):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def say(self, text: str) -> None:
        self.heard.append(text)


@pytest.fixture
def two(tmp_path: Path) -> Checkpoints:
    """Two checkpoints and a list of what was said, in `warn`."""
    said: list[str] = []
    checkpoints = Checkpoints(tmp_path, said.append)
    for step in (1, 2):
        checkpoints.save({**CONTENT, "step": step}, step)
    return checkpoints


def heard(checkpoints: Checkpoints) -> list[str]:
    return checkpoints.warn.__self__  # type: ignore[attr-defined]


def test_two_are_kept_and_the_newest_is_loaded(two: Checkpoints) -> None:
    two.save({**CONTENT, "step": 3}, 3)
    assert [int(path.name[5:14]) for path in two.paths()] == [2, 3]
    loaded = two.load()
    assert loaded is not None
    assert loaded["step"] == 3
    assert torch.equal(loaded["network"]["weight"], CONTENT["network"]["weight"])
    assert heard(two) == []


def test_a_checkpoint_takes_the_place_of_one_of_the_same_step(two: Checkpoints) -> None:
    for number in range(20):  # whatever their digests are
        two.save({**CONTENT, "step": 2, "number": number}, 2)
        assert [int(path.name[5:14]) for path in two.paths()] == [1, 2]
        loaded = two.load()
        assert loaded is not None
        assert loaded["number"] == number


def test_every_flipped_bit_is_found_out(two: Checkpoints) -> None:
    newest = two.paths()[-1]
    whole = newest.read_bytes()
    draw = random.Random(0)
    for position in [0, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(60))]:
        data = bytearray(whole)
        data[position] ^= 1 << draw.randrange(8)
        newest.write_bytes(data)
        loaded = two.load()
        assert loaded is not None
        assert loaded["step"] == 1
        newest.with_name(f"{newest.name}.damaged").unlink()
    assert len(heard(two)) == 62
    assert newest.name in heard(two)[0]


@pytest.mark.parametrize("left", [0, 1, 500, -1])
def test_truncated_and_empty_files_are_found_out(left: int, two: Checkpoints) -> None:
    newest = two.paths()[-1]
    newest.write_bytes(newest.read_bytes()[:left])
    loaded = two.load()
    assert loaded is not None
    assert loaded["step"] == 1
    assert heard(two) == [
        f"{newest.name} is damaged (its content is not what was written); going on from the one before"
    ]
    # The next one pushes the damaged one out of the way, not the whole one.
    two.save({**CONTENT, "step": 2}, 2)
    assert [int(path.name[5:14]) for path in two.paths()] == [1, 2]


def test_without_a_whole_one_there_is_none(two: Checkpoints) -> None:
    for path in two.paths():
        path.write_bytes(b"")
    older, newer = (path.name for path in two.paths())
    assert two.load() is None
    damaged = "is damaged (its content is not what was written)"
    assert heard(two) == [
        f"{newer} {damaged}; going on from the one before",
        f"{older} {damaged}; there is none before it: starting from the beginning",
    ]


class Malice:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_malicious_checkpoint_is_refused_and_nothing_is_executed(
    wrapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "file"
    if wrapped:
        torch.save({"network": Malice()}, path)
    else:
        path.write_bytes(pickle.dumps({"network": Malice()}, protocol=2))
    name = f"step-000000001-{digest(path.read_bytes())}.pt"
    path.rename(tmp_path / name)
    with pytest.raises(UsageError, match=name):
        Checkpoints(tmp_path, print).load()
    assert not (tmp_path / "executed").exists()


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let the system refuse to write more, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_checkpoint_of_before(tmp_path: Path, undisturbed: Path) -> None:
    folder = tmp_path / "run"

    class Fill(Watcher):
        def __init__(self) -> None:
            self.steps = 0

        def step(self, done: int, figures: object) -> None:
            self.steps += 1
            if self.steps == STEPS + 2:
                limit.__enter__()

    limit = files_of_at_most(100_000)
    try:
        with pytest.raises(RunFailed, match=r"cannot be written \(File too large\); the checkpoint of before is whole"):
            run(RICH, folder, checkpoint_minutes=0.0, watcher=Fill())
    finally:
        limit.__exit__(None, None, None)
    assert [path.name[:14] for path in Checkpoints(folder / "checkpoints", print).paths()] == [
        f"step-{STEPS + n:09d}" for n in (0, 1)
    ]
    assert not list((folder / "checkpoints").glob(".*")), "the half-written one takes no room"
    run(RICH, folder)
    assert_same_run(folder, undisturbed)


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(tmp_path: Path, undisturbed: Path) -> None:
    folder, listening = tmp_path / "run", Listening()
    with pytest.raises(KeyboardInterrupt):
        run(RICH, folder, checkpoint_minutes=0.0, watcher=Interrupting(STEPS + 3))
    newest = Checkpoints(folder / "checkpoints", print).paths()[-1]
    newest.write_bytes(newest.read_bytes()[:-7])
    run(RICH, folder, watcher=listening)
    assert [newest.name in text for text in listening.heard[:2]] == [True, False]
    assert listening.heard[1].endswith(f"going on after step {STEPS + 1}")
    assert_same_run(folder, undisturbed)


def test_the_first_environment_is_kept_and_a_change_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, path = tmp_path / "run", tmp_path / "run" / "environment.json"
    with pytest.raises(KeyboardInterrupt):
        run(RICH, folder, watcher=Interrupting(STEPS + 1))
    first = json.loads(path.read_text(encoding="utf-8"))
    before = path.read_bytes()
    listening = Listening()
    with pytest.raises(KeyboardInterrupt):
        run(RICH, folder, watcher=Several([Interrupting(1), listening]))
    assert path.read_bytes() == before, "on the same machine"
    assert len(listening.heard) == 1
    monkeypatch.setattr("torch.get_num_threads", lambda: first["threads"] + 1)
    listening = Listening()
    run(RICH, folder, watcher=listening)
    assert json.loads(path.read_text(encoding="utf-8")) == {**first, "later": [{"threads": first["threads"] + 1}]}
    assert listening.heard[0] == (
        f"{folder}: goes on with threads {first['threads'] + 1} in place of {first['threads']}: not bit for bit what "
        "an undisturbed run comes to"
    )


def test_environments_are_compared_with_the_last(tmp_path: Path) -> None:
    base = {"torch": "2.15", "platform": "Linux-6", "threads": 1}
    assert folders.note_environment(tmp_path, base) == {}
    assert folders.note_environment(tmp_path, {**base, "threads": 2}) == {"threads": [1, 2]}
    assert folders.note_environment(tmp_path, {**base, "threads": 2, "platform": "Linux-7"}) == {}
    assert folders.note_environment(tmp_path, {**base, "platform": "Linux-7"}) == {"threads": [2, 1]}
    later = [{"threads": 2}, {"platform": "Linux-7"}, {"threads": 1}]
    assert json.loads((tmp_path / "environment.json").read_text(encoding="utf-8")) == {**base, "later": later}


def test_a_changed_recipe_is_refused_unless_named(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(RICH, folder, watcher=Interrupting(STEPS + 1))
    before = (folder / "config.json").read_bytes()
    with pytest.raises(UsageError, match=r"holds a run with learning_rate 0.05, not 0.01.*override=learning_rate"):
        run(replace(RICH, learning_rate=0.01), folder)
    with pytest.raises(UsageError, match=r"holds a run with seed 0, not 1; choose another folder\.$"):
        run(replace(RICH, seed=1, learning_rate=0.01), folder, override=["learning_rate"])
    with pytest.raises(UsageError, match="override=seed: cannot change in a run; choose from channels_last"):
        run(replace(RICH, seed=1), folder, override=["seed"])
    assert (folder / "config.json").read_bytes() == before
    run(replace(RICH, learning_rate=0.01, weight_decay=0.0), folder, override=["learning_rate", "weight_decay"])
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["learning_rate"] == 0.01
    changes = [{"learning_rate": [0.05, 0.01], "weight_decay": [1e-4, 0.0]}]
    assert json.loads((folder / "overrides.json").read_text(encoding="utf-8")) == {"changes": changes}
    last = Checkpoints(folder / "checkpoints", print).load()
    assert last is not None
    assert [group["weight_decay"] for group in last["optimizer"]["param_groups"]] == [0.0, 0.0]


def test_a_finished_run_can_be_made_longer_and_is_not_run_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = run(RICH, folder)
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert run(RICH, folder) == first
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == files
    # A damaged result is no traceback, and can be had again.
    whole = (folder / "result.json").read_bytes()
    for damaged in (whole[:40], b"[]", b'{"test_accuracy": 99.0}'):
        (folder / "result.json").write_bytes(damaged)
        with pytest.raises(UsageError, match=r"result.json: is damaged; remove it, and the same command"):
            run(RICH, folder)
    (folder / "result.json").unlink()
    assert replace(run(RICH, folder), seconds=first.seconds) == first
    longer = run(replace(RICH, epochs=3), folder, override=["epochs"])
    assert longer.epochs == 3
    assert len((folder / "metrics.csv").read_text(encoding="utf-8").splitlines()) == 4


def test_two_processes_cannot_train_in_one_folder(tmp_path: Path) -> None:
    with folders.locked(tmp_path / "run"), pytest.raises(UsageError, match="another process is training in it"):
        run(RICH, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_the_best_epoch_is_the_first_of_the_highest_and_never_nan() -> None:
    nan = float("nan")
    rows = [
        row(n + 1, 1.0, 50.0, loss, acc, 90.0, 0.1)
        for n, (loss, acc) in enumerate([(nan, nan), (1.0, 60.0), (nan, 99.0), (0.9, 70.0), (0.8, 70.0)])
    ]
    headline = tasks.of(TINY).headline
    best = folders.best_row(rows, tasks.of(TINY))
    assert best is rows[3]
    assert folders.best_row(rows[:1], tasks.of(TINY)) is None
    for some, said in ((rows, "(the best was 70.00 % after 4)"), (rows[:1], "(no epoch has finite test figures; ")):
        assert said in folders.result_of(some, tasks.of(TINY), 3, 1.0).sentence(headline)
