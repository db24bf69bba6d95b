"""What ends a run before its time: a picture, a worker, a process, a signal; each in a line, and resumable."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from calibnorm.errors import RunFailed, Stopped, UsageError, exit_status
from calibnorm.lab import cli, data
from calibnorm.lab.data.folders import train_order
from calibnorm.lab.data.listing import scan
from calibnorm.lab.tasks.classify import Classify
from calibnorm.lab.training import folder as folders
from calibnorm.lab.training import learner, meetings
from calibnorm.lab.training import run as runs
from calibnorm.lab.training.ending import is_of_a_collective
from calibnorm.report.files import write_whole
from lab.training import children
from lab.training.test_processes import free_port, pair
from lab.training.tiny import PICTURES, RICH, STEPS, TINY, Interrupting, arguments, assert_same_run, row, run, state


def train_pictures(folder: Path, root: Path, *more: str) -> list[str]:
    return [*arguments(PICTURES, folder), "--data-root", str(root), "--checkpoint-minutes", "0", *more]


def test_a_worker_killed_while_a_step_runs_ends_the_run_in_a_line_and_it_goes_on(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    step, count = learner.Learner.step, 0

    def stepped(self: learner.Learner, *args: Any) -> Any:
        nonlocal count
        count += 1
        if count == 3:
            (worker,) = multiprocessing.active_children()
            worker.kill()
            time.sleep(children.PATIENCE)  # torch raises here, where the signal comes
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(learner.Learner, "step", stepped)
        patch.setattr(Classify, "try_out", lambda *_: None)  # else there is the test feed's worker, too
        assert cli.main(train_pictures(folder, root, "--workers", "1")) == 1
    said = capsys.readouterr().err
    assert said.startswith("calibnorm: DataLoader worker (pid ")
    assert said.endswith("or smaller batches; the same command goes on from the last checkpoint\n")
    assert said.count("\n") == 1
    assert multiprocessing.active_children() == []
    assert state(folder)["progress"]["step"] == 2
    assert cli.main(train_pictures(folder, root, "--workers", "0")) == 0
    assert cli.main(train_pictures(tmp_path / "whole", root, "--workers", "0")) == 0
    assert_same_run(folder, tmp_path / "whole")


def test_errors_of_the_program_are_no_errors_of_workers() -> None:
    for text in (
        "mat1 and mat2 shapes cannot be multiplied",
        "",
        "Caught RuntimeError in DataLoader worker process 0.",
    ):
        assert data.worker_error(RuntimeError(text)) is None
    ours = data.WorkerError("gone")
    assert data.worker_error(ours) is ours


def test_a_damaged_picture_ends_the_command_with_its_name(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = damage(root, 0, 1)
    assert cli.main(train_pictures(tmp_path / "run", root, "--workers", "0")) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"calibnorm: {damaged}: no picture that can be read")
    assert said.count("\n") == 1


def damage(root: Path, rank: int, world: int) -> Path:
    """Cut the first picture of the second step of a process short."""
    listing = scan(root / "folders" / "train")
    order = train_order(torch.arange(len(listing)), PICTURES.batch_size, PICTURES.seed, rank, world)
    path = Path(listing.path(list(order)[1][0][1]))
    path.write_bytes(path.read_bytes()[:60])
    return path


def test_a_damaged_picture_of_the_second_process_ends_both(tmp_path: Path, root: Path) -> None:
    damaged = damage(root, 1, 2)
    more = ("--data-root", str(root), "--workers", "0")
    statuses, said = pair(PICTURES, tmp_path / "run", more=more)
    assert statuses == [2, 2], said
    assert said[0] == "folders: 3 classes, training images 18 (6 a class), test images 6 (2 a class)\n"
    assert said[1].startswith(f"calibnorm: process 1: {damaged}: no picture that can be read")
    assert said[1].count("\n") == 1


def test_an_error_of_the_first_process_ends_a_second_that_waits_deaf(tmp_path: Path) -> None:
    # Without the thread beside it the second waits ten times as long as children.py does, and is killed there.
    statuses, said = pair(TINY, tmp_path / "run", target=children.rank_that_waits)
    assert statuses == [2, 2], said
    assert said == ["calibnorm: a picture cannot be read\n", ""]


@pytest.mark.nightly
def test_a_process_that_waits_deaf_obeys_a_signal_at_last(tmp_path: Path) -> None:
    statuses, said = pair(TINY, tmp_path / "run", (signal.SIGTERM, 3), target=children.rank_deaf_to_a_signal)
    assert statuses == [1, 143], said
    assert said[1].startswith("calibnorm: process 1: asked to stop, and the others do not answer; the same command")


@pytest.mark.nightly
@pytest.mark.parametrize("end", ["picture", "signal"])
def test_devices_end_together_with_the_status_of_the_one_that_fails(end: str, tmp_path: Path, root: Path) -> None:
    if end == "picture":
        damaged = damage(root, 1, 2)
    recipe = PICTURES if end == "picture" else replace(PICTURES, epochs=1000)
    given = [*arguments(recipe, tmp_path / "run"), "--data-root", str(root), "--workers", "1", "--devices", "2"]
    command = [sys.executable, "-m", "calibnorm", *given]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, start_new_session=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        while end == "signal" and not (tmp_path / "run" / "metrics.csv").exists():
            assert process.poll() is None
            time.sleep(0.1)
        if end == "signal":
            os.killpg(process.pid, signal.SIGTERM)  # as a batch system does: the processes that read pictures, too
        _, said = process.communicate(timeout=children.PATIENCE)
    named = f"calibnorm: process 1: {damaged}: " if end == "picture" else "calibnorm: stopped in epoch "
    assert process.returncode == (2 if end == "picture" else 143), said
    assert said.startswith(named)
    assert said.count("\n") == 1
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError("somebody is left")


def killed(rank: int, folder: Path) -> list[str]:
    """Return what two processes say when one of them is killed in a step."""
    port, args = free_port(), arguments(TINY, folder)
    outputs = [folder.with_name(f"said-{number}") for number in range(2)]
    kill = (signal.SIGKILL, STEPS + 2)
    ranks = [(number, 2, port, args, kill if number == rank else None) for number in range(2)]
    statuses = children.together(children.rank, ranks, outputs)
    said = [path.read_text() for path in outputs]
    assert statuses[rank] == -signal.SIGKILL, said
    assert statuses[1 - rank] == 1, said
    assert state(folder)["progress"]["step"] == STEPS
    return said


def test_a_killed_process_ends_the_other_in_a_line(tmp_path: Path) -> None:
    said = killed(1, tmp_path / "run")
    assert said[1] == ""
    last = said[0].splitlines()[-1]
    assert last.startswith("calibnorm: another process is gone (")
    assert last.endswith("; the same command goes on from the last checkpoint")
    assert "Traceback" not in said[0]


@pytest.mark.nightly
def test_the_first_process_killed_ends_the_other(tmp_path: Path) -> None:
    said = killed(0, tmp_path / "run")
    assert "Traceback" not in said[1]
    (line,) = [line for line in said[1].splitlines() if line.startswith("calibnorm: ")]
    assert line.startswith("calibnorm: process 1: another process is gone")


def test_a_signal_to_one_of_two_while_they_test(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    statuses, said = pair(RICH, folder, target=children.rank_told_to_stop_in_test)
    assert statuses == [143, 143], said
    assert "stopped in epoch 1 after 4 steps of it" in said[0]
    assert said[1] == ""
    content = state(folder)
    assert (content["progress"]["step"], content["progress"]["epoch"]) == (STEPS, 0)


@pytest.mark.nightly
def test_two_stopped_while_they_test_go_on_bit_for_bit(tmp_path: Path) -> None:
    assert pair(RICH, tmp_path / "run", target=children.rank_told_to_stop_in_test)[0] == [143, 143]
    for name in ("run", "whole"):
        assert pair(RICH, tmp_path / name)[0] == [0, 0]
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_with_slow_steps_a_signal_to_one_of_two_is_seen_at_the_next(tmp_path: Path) -> None:
    kill = (signal.SIGTERM, 2)
    statuses, said = pair(TINY, tmp_path / "run", kill, target=children.rank_with_slow_steps)
    assert statuses == [143, 143], said
    assert "stopped in epoch 1 after 2 steps of it" in said[0]


def test_processes_meet_about_every_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    others: list[int] = []

    class Fabric:
        world_size, device = 2, torch.device("cpu")

    def largest(fabric: object, *values: int) -> tuple[int, ...]:
        return (max(values[0], *others), *values[1:]) if others else values

    monkeypatch.setattr(meetings.time, "monotonic", lambda: now)
    monkeypatch.setattr(meetings, "largest", largest)
    watched = meetings.Meetings(Fabric(), 50)  # type: ignore[arg-type]

    def steps(seconds: float) -> int:
        nonlocal now
        for count in range(1, 1000):
            now += seconds
            if watched.step():
                assert watched.largest(7, 0) == (7, 0)
                return count
        raise AssertionError

    assert steps(0.25) == 1, "at first after one step"
    assert steps(0.25) == 4
    assert steps(0.001) == 4
    assert steps(0.001) == 50, "never after more"
    assert steps(30.0) == 50
    assert steps(30.0) == 1
    others.append(500_000)  # microseconds of a step in a slower process
    assert steps(0.1) == 1
    assert steps(0.1) == 2
    now += 100.0  # a test between two epochs
    watched.begin()
    others.clear()
    assert steps(0.1) == 2
    assert steps(0.1) == 10


def test_a_process_of_fabric_leaves_the_status_to_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Fabric looks every five seconds, and kills the first process when another's status is not 0.
    error: Exception

    def fails(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(runs, "train", fails)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("LOCAL_RANK", "1")
    shared = UsageError("all have it")
    shared.shared = True
    for each, status in ((Stopped(15, ""), 0), (shared, 0), (UsageError("mine"), 2), (RunFailed("mine"), 1)):
        error = each
        assert cli.main(arguments(TINY, tmp_path / "run")) == status


def test_exit_statuses_and_collectives() -> None:
    errors = (UsageError(""), RunFailed(""), KeyboardInterrupt(), ValueError())
    assert [exit_status(error) for error in errors] == [2, 1, 130, 1]
    closed = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer")
    for error, lost in ((closed, True), (torch.distributed.DistBackendError("NCCL"), True), (RuntimeError("x"), False)):
        assert is_of_a_collective(error) is lost


def test_a_file_is_on_the_disk_before_it_is_renamed_and_the_rename_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, content = tmp_path / "file", b"new" * 1000
    path.write_bytes(b"old")
    done: list[tuple[str, object]] = []
    fsync, renamed = os.fsync, Path.replace

    def synced(number: int) -> None:
        status = os.fstat(number)
        folder = stat.S_ISDIR(status.st_mode)
        assert not folder or status.st_ino == tmp_path.stat().st_ino
        done.append(("folder", path.read_bytes()) if folder else ("file", status.st_size))
        fsync(number)

    def replaced(source: Path, target: Path) -> Path:
        done.append(("replace", path.read_bytes()))
        return renamed(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    write_whole(path, content)
    assert done == [("file", len(content)), ("replace", b"old"), ("folder", content)]


def test_fewer_epochs_than_are_done_are_refused(tmp_path: Path) -> None:
    folder, recipe = tmp_path / "run", replace(TINY, epochs=3, test_every=2)
    with pytest.raises(KeyboardInterrupt):  # in the last one
        run(recipe, folder, watcher=Interrupting(2 * STEPS + 1))
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=r"epochs=1: the run in .* has done 2 already; choose 2 or more, or choose"):
        run(replace(recipe, epochs=1), folder, override=["epochs"])
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == files
    shorter = run(replace(recipe, epochs=2), folder, override=["epochs"])
    assert (shorter.epochs, len((folder / "metrics.csv").read_text().splitlines())) == (2, 3)
    assert not math.isnan(shorter.test_accuracy)
    with pytest.raises(UsageError, match="has done 2 already; choose 2 or more"):
        run(replace(recipe, epochs=1), folder, override=["epochs"])
    assert run(replace(recipe, epochs=2), folder) == shorter, "what was there is still there"


@pytest.mark.parametrize(
    ("epochs", "tested", "said"),
    [
        (1, True, "has done 2 already; choose 2 or more"),
        (2, False, "has done 2 already, the last one without a test; choose 3 or more"),
        (2, True, None),
        (3, False, None),
    ],
)
def test_a_last_epoch_is_a_tested_one(epochs: int, tested: bool, said: str | None) -> None:
    second = (1.0, 50.0, 90.0) if tested else (math.nan,) * 3
    rows = [row(1, 1.0, 50.0, 1.0, 50.0, 90.0, 0.1), row(2, 1.0, 50.0, *second, 0.1)]
    if said is None:
        folders.check_epochs(Path("run"), epochs, rows)
    else:
        with pytest.raises(UsageError, match=said):
            folders.check_epochs(Path("run"), epochs, rows)
    folders.check_epochs(Path("run"), 1, [])
