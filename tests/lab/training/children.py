"""Runs in processes of their own, to be killed: forked from a server that has imported everything."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    from calibnorm.lab.recipes import Recipe

PATIENCE = 120.0
"""Seconds that a run may take, generous: a busy machine must not fail it."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "calibnorm.lab.training.run",
        "calibnorm.lab.experiments.worker_process",
        "sklearn.datasets",
        "sklearn.model_selection",
    ]
)


@functools.cache
def context() -> ForkServerContext:
    """Return the context of the server, which is started without coverage: forked processes do not save its figures."""
    with mock.patch.dict(os.environ):
        os.environ.pop("COVERAGE_PROCESS_CONFIG", None)
        forkserver.ensure_running()
    return _context


def run(target: Callable[..., int], *arguments: Any, output: Path | None = None) -> int:
    """Return the exit status of a function's own process; negative is a signal's number."""
    process = context().Process(target=_start, args=(target, arguments, output))
    process.start()
    process.join(PATIENCE)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError(f"{target.__name__} did not end within {PATIENCE} seconds")
    assert process.exitcode is not None
    return process.exitcode


def together(target: Callable[..., int], arguments: list[tuple[Any, ...]], outputs: list[Path]) -> list[int | None]:
    """Return the exit statuses of several processes that run at the same time."""
    pairs = zip(arguments, outputs, strict=True)
    processes = [context().Process(target=_start, args=(target, each, output)) for each, output in pairs]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()
    return [process.exitcode for process in processes]


def _start(target: Callable[..., int], arguments: tuple[Any, ...], output: Path | None) -> None:
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may have been started with it ignored
    if output is not None:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
    status = target(*arguments)
    sys.stdout.flush()
    sys.exit(status)


def train_and_die(recipe: Recipe, folder: Path, minutes: float, moment: str, number: int) -> int:
    """Train, and be killed by SIGKILL the ``number``-th time that a moment comes."""
    from calibnorm.lab.training import train
    from calibnorm.lab.training.watchers import Watcher

    seen = 0

    def die_here() -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    class Steps(Watcher):
        def step(self, done: int, figures: object) -> None:
            if moment == "step":
                die_here()

    fsync, replace, unlink, opened = os.fsync, Path.replace, Path.unlink, Path.open

    class Half:
        """A file of which half has been written when the process dies."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Half:
            return self

        def __exit__(self, *error: object) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, data: bytes) -> int:
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            die_here()
            return self.file.write(data[len(data) // 2 :])

    def slow_open(path: Path, mode: str = "r", **options: Any) -> Any:
        file = opened(path, mode, **options)
        return Half(file) if path.name.startswith(".step") and mode == "wb" else file

    def dying_replace(path: Path, target: Path) -> Path:
        ours = path.name.startswith(".step")
        if ours and moment == "before rename":
            die_here()
        done = replace(path, target)
        if ours and moment == "after rename":
            die_here()
        return done

    def dying_unlink(path: Path, missing_ok: bool = False) -> None:
        if path.name.startswith("step") and moment == "before removal":
            die_here()
        unlink(path, missing_ok=missing_ok)

    def dying_fsync(file: int) -> None:
        if moment == "fsync":
            die_here()
        fsync(file)

    with (
        mock.patch.object(Path, "open", slow_open if moment == "half written" else opened),
        mock.patch.object(Path, "replace", dying_replace),
        mock.patch.object(Path, "unlink", dying_unlink),
        mock.patch.object(os, "fsync", dying_fsync),
    ):
        train(
            recipe,
            folder,
            data_root=Path(),
            accelerator="cpu",
            checkpoint_minutes=minutes,
            watcher=Steps(),
        )
    return 0


def command(args: list[str], kill: tuple[int, int] | None = None) -> int:
    """Run `calibnorm ARGS`; send the process itself a signal (number, after so many steps)."""
    from calibnorm.lab import cli
    from calibnorm.lab.training import learner

    step, count = learner.Learner.step, 0

    def stepped(self: learner.Learner, *arguments: Any) -> Any:
        nonlocal count
        count += 1
        if kill is not None and count == kill[1]:
            os.kill(os.getpid(), kill[0])
        return step(self, *arguments)

    with mock.patch.object(learner.Learner, "step", stepped):
        return cli.main(args)


def environment_of(number: int, world: int, port: int) -> dict[str, str]:
    """Return what torchrun tells a process."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
    counts = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "RANK": number, "LOCAL_RANK": number}
    return place | {name: str(count) for name, count in counts.items()}


def rank(number: int, world: int, port: int, args: list[str], kill: tuple[int, int] | None = None) -> int:
    """Run `calibnorm ARGS` as torchrun starts a process; signals are looked for after each step."""
    from calibnorm.lab.training import loop

    os.environ.update(environment_of(number, world, port))
    with mock.patch.object(loop, "LOOK_EVERY", 1):
        return command(args, kill)


def rank_of_recipe(number: int, world: int, port: int, recipe: Recipe, folder: Path) -> int:
    """Train a recipe as torchrun starts a process."""
    from calibnorm.lab.training import train

    os.environ.update(environment_of(number, world, port))
    train(recipe, folder, data_root=Path(), accelerator="cpu")
    return 0


def rank_that_says_what_it_tests(*arguments: Any) -> int:
    """As `rank`; prints the digest of the tested network in each test."""
    import hashlib

    from calibnorm.lab.training.checkpoints import dumped
    from calibnorm.lab.training.learner import Learner

    before = Learner.before_tests

    def told(self: Learner) -> None:
        before(self)
        content = {name: value.tolist() for name, value in self.tested.state_dict().items()}
        print("tested", hashlib.sha256(dumped(content)).hexdigest())

    with mock.patch.object(Learner, "before_tests", told):
        return rank(*arguments)


def rank_that_cannot_load(number: int, *arguments: Any) -> int:
    """As `rank`; the second process finds no images."""
    from calibnorm.lab.training import run

    with mock.patch.object(run, "load", no_images if number == 1 else run.load):
        return rank(number, *arguments)


def rank_that_cannot_start(number: int, *arguments: Any) -> int:
    """As `rank`; the second process finds out before it has met the first."""
    from calibnorm.lab.tasks.classify import Classify

    with mock.patch.object(Classify, "check", no_images if number == 1 else Classify.check):
        return rank(number, *arguments)


def no_images(*arguments: Any) -> None:
    """Refuse."""
    from calibnorm.errors import UsageError

    raise UsageError("no images here")


def command_stopped_in_test(args: list[str]) -> int:
    """Run `calibnorm ARGS`, and be told to end while the first epoch is tested."""
    from calibnorm.lab.training.learner import Learner

    before = Learner.before_tests

    def told(self: Learner) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        before(self)

    with mock.patch.object(Learner, "before_tests", told):
        return command(args)


def command_in_a_group(args: list[str], number: signal.Signals, birth: int) -> int:
    """Run `calibnorm ARGS` in a process group; its ``birth``-th worker sends all of it a signal when it comes to be."""
    from multiprocessing.process import BaseProcess

    os.setpgid(0, 0)
    bootstrap, start, started = BaseProcess._bootstrap, BaseProcess.start, 0  # type: ignore[attr-defined]

    def counted(self: BaseProcess) -> None:
        nonlocal started
        started += 1
        start(self)

    def born(self: BaseProcess, *arguments: Any, **options: Any) -> Any:
        if started == birth:
            os.killpg(0, number)
        return bootstrap(self, *arguments, **options)

    with mock.patch.object(BaseProcess, "start", counted), mock.patch.object(BaseProcess, "_bootstrap", born):
        return command(args)


def rank_told_to_stop_in_test(number: int, *arguments: Any) -> int:
    """As `rank`; the second process gets SIGTERM when it begins to test."""
    from calibnorm.lab.training.learner import Learner

    before = Learner.before_tests

    def told(self: Learner) -> None:
        if number == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        before(self)

    with mock.patch.object(Learner, "before_tests", told):
        return rank(number, *arguments)


def rank_with_slow_steps(number: int, world: int, port: int, args: list[str], kill: tuple[int, int] | None) -> int:
    """As `rank`, but meetings are as seldom as steps of a second make them."""
    from calibnorm.lab.training import meetings
    from calibnorm.lab.training.loop import LOOK_EVERY

    def begin(self: meetings.Meetings) -> None:
        before(self)
        self._most, self._since = LOOK_EVERY, self._since - meetings.MEET_S

    before = meetings.Meetings.begin
    with mock.patch.object(meetings.Meetings, "begin", begin):
        return rank(number, world, port, args, kill)


def rank_that_waits(number: int, *arguments: Any) -> int:
    """As `rank`; the first process fails in its third step, and the second waits there, deaf, as in NCCL."""
    return _waiting(number, arguments, fails=number == 0)


def rank_deaf_to_a_signal(number: int, *arguments: Any) -> int:
    """As `rank`; the second process gets SIGTERM in its third step, and waits there, deaf, as in NCCL."""
    return _waiting(number, arguments, fails=False)


def _waiting(number: int, arguments: tuple[Any, ...], fails: bool) -> int:
    from calibnorm.errors import UsageError
    from calibnorm.lab.training import ending, learner

    step, count = learner.Learner.step, 0

    def stepped(self: learner.Learner, *batch: Any) -> Any:
        nonlocal count
        count += 1
        if count == 3 and fails:
            raise UsageError("a picture cannot be read")
        if count == 3 and number == 1:
            if arguments[-1] is not None:
                os.kill(os.getpid(), arguments[-1][0])
            time.sleep(10 * PATIENCE)
        return step(self, *batch)

    with mock.patch.object(learner.Learner, "step", stepped), mock.patch.object(ending, "OBEY_S", 1.0):
        return rank(number, *arguments[:-1])


def first_that_waits(code: str) -> int:
    """Start another process that runs some code as the second of two, and wait as for a rendezvous."""
    from calibnorm.lab.training import companions

    sys.orig_argv = ["python", "-c", code]
    names = ("OBEY_S", "KILLED_S", "FAILED_S")
    with mock.patch.multiple(companions, **dict.fromkeys(names, 0.1)):
        companions.start(2, "127.0.0.1", 1)
        time.sleep(PATIENCE)
    return 0


def first_that_ends() -> int:
    """Start another process, in a group of its own, that watches this one; and end when it does."""
    from calibnorm.lab.training import companions

    code = (
        "import os, time; from calibnorm.lab.training import companions; os.setpgrp(); companions.ALONE_S = 0.1\n"
        "companions.end_with_first(); print(os.getpid(), flush=True); time.sleep(600)"
    )
    sys.orig_argv = ["python", "-c", code]
    companions.start(2, "127.0.0.1", 1)
    while os.fstat(1).st_size == 0:
        time.sleep(0.05)
    return 0
