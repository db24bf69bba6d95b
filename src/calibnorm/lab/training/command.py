"""`calibnorm train`: its options, what it prints and how it ends.

Importing this must stay quick: Lightning is imported when a run begins, not for help or a wrong option.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from calibnorm import loading
from calibnorm._stopping import advised
from calibnorm._stopping import speaks as first_process
from calibnorm.errors import NOT_GIVEN, ReasonedError, RunFailed, Setting, Stopped, UsageError, as_option, exit_status
from calibnorm.lab.arguments import given, parsed
from calibnorm.lab.naming import check_name, slug
from calibnorm.lab.recipes import RECIPES, Recipe, recipe, refuse_without_effect, summary

if TYPE_CHECKING:
    from calibnorm.lab.training.watchers import Watcher

PROGRAM = "calibnorm train"
USAGE = f"""usage: {PROGRAM} RECIPE [OPTIONS]

Train a recipe into a folder. Started again, the same command goes on where it stopped, with the same result.
Every setting of the recipe is an option: {PROGRAM} RECIPE --help lists them with the recipe's values.
Several GPUs: --devices N, or torchrun on each machine (docs/training.md).

    {PROGRAM} digits-tiny
    {PROGRAM} iebn-resnet164-cifar100 --norm bn --seed 3

recipes:"""


OF_THE_COMMAND = ("out", "name", "progress", "tensorboard", "load", "noise_every")
"""Options that are not arguments of `train`."""


@dataclass(frozen=True)
class RunOptions:
    """Where and how a run goes on; nothing of this changes its result."""

    data_root: Path = Path("data")
    """Folder that holds the data sets."""
    out: Path | None = None
    """Folder of the run; runs/<recipe>/<name> by default."""
    name: str | None = None
    """Name of the run; norm, noise and seed by default, such as iebn-seed3."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto is a GPU where there is one."""
    devices: int | None = None
    """Processes on this machine, each with a GPU of its own; 1 by default, under torchrun what torchrun says."""
    num_nodes: int | None = None
    """Machines, with torchrun on each."""
    workers: int | None = None
    """Processes that read a folder set's pictures, for each of --devices; a part of the cores by default, at most 8."""
    override: tuple[str, ...] = ()
    """Settings that may differ from those of the unfinished run in the folder, such as learning_rate."""
    checkpoint_minutes: float = 10.0
    """Minutes between two checkpoints inside an epoch; there is one after each epoch anyway."""
    progress: bool = True
    """A progress bar where the output is a terminal; else a line an epoch."""
    tensorboard: bool = False
    """Write TensorBoard's files into the folder, too."""
    load: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILE|MODULE ...")] = ()
    """Python files or modules to import first, which register norms, recipes or tasks of your own."""
    noise_every: int | None = None
    """Measure the batch noise of every layer each so many steps, into noise.csv and TensorBoard's files."""

    def __post_init__(self) -> None:
        loading.load(self.load)
        if not self.checkpoint_minutes >= 0:
            raise UsageError(Setting("checkpoint_minutes", self.checkpoint_minutes), "must be 0 or more")
        if self.noise_every is not None and self.noise_every < 1:
            raise UsageError(Setting("noise_every", self.noise_every), "must be at least 1")
        if self.workers is not None and self.workers < 0:
            raise UsageError(Setting("workers", self.workers), "must be 0 or more")
        if self.out is not None and self.name is not None:
            raise UsageError(Setting("name"), "give it or ", Setting("out"), ", not both")
        if self.name is not None:
            check_name(self.name)

    def of_train(self) -> dict[str, Any]:
        """Return those that `train` takes, too."""
        return {name: value for name, value in vars(self).items() if name not in OF_THE_COMMAND}


def main(args: Sequence[str]) -> int:
    """Run `calibnorm train` with what follows these words, and return its exit status.

    Raises:
        UsageError: The input cannot be used; this and the other two are raised in process 0 alone.
        RunFailed: The run cannot go on.
        Stopped: SIGINT or SIGTERM came.
    """
    if args and args[0] in ("-h", "--help", "--list"):
        print(listing())
        return 0
    name, *rest = args or [""]
    if not name or name.startswith("-"):
        call = " ".join(["train", name]).strip()
        example = "folders-small" if "folders" in args else "digits-tiny"
        raise UsageError(f"{call}: a recipe comes first, such as {PROGRAM} {example} ({PROGRAM} --list)")
    if name not in RECIPES and Path(name).is_dir():
        yours = f"for pictures of your own: {PROGRAM} folders-small --data-root {shlex.quote(name)}"
        raise UsageError(f"{name}: is a folder, and a recipe comes first; {yours}")
    return begin(name, rest)


def begin(name: str, words: Sequence[str], program: str = "", text: str = "") -> int:
    """Run what words behind a recipe's name stand for; the rest is as in :func:`main`.

    Args:
        name: The recipe's.
        words: Its settings and the run's options.
        program: How the command is called; "calibnorm train NAME" by default.
        text: What its help says; the recipe's summary by default.
    """
    try:
        settings, options = read(name, words, program, text)
        folder = options.out or Path("runs") / name / (options.name or run_name(settings))
    except UsageError:
        if not first_process():  # all have the same words, and process 0 says it
            return 2
        raise
    try:
        return run(settings, folder, options)
    except (UsageError, RunFailed, Stopped) as error:
        if not first_process():
            if isinstance(error, Stopped) or error.shared:  # process 0 says it
                if "RANK" not in os.environ:  # Fabric kills process 0, which is about to end, for one that has failed
                    return 0
            else:
                number = os.environ.get("RANK", os.environ.get("LOCAL_RANK"))
                print(f"calibnorm: process {number}: {in_words(error, options)}", file=sys.stderr)
            return exit_status(error)
        if isinstance(error, Stopped):
            raise Stopped(error.number, f"{error}; the same command goes on from there ({folder})") from error
        raise type(error)(in_words(error, options)) from error


def read(name: str, words: Sequence[str], program: str = "", text: str = "") -> tuple[Recipe, RunOptions]:
    """Return the settings and the options that words behind a recipe's name stand for.

    Raises:
        UsageError: The name or a word is not known, or a value cannot be used.
    """
    chosen = recipe(name)
    kinds = {"recipe": type(chosen), "options": RunOptions}
    unnamed = tyro.conf.arg(name="")
    both: Any = make_dataclass("Both", [(part, Annotated[kind, unnamed]) for part, kind in kinds.items()])
    default = both(chosen, RunOptions())
    prog, description = program or f"{PROGRAM} {name}", text or summary(name)
    command = parsed(both, words, prog=prog, description=description, default=default)
    refuse_without_effect([command.recipe], chosen, given(words))
    return command.recipe, command.options


def in_words(error: ReasonedError, options: RunOptions) -> str:
    """Return an error's text with the options that the user has typed, or can type.

    The folder is called by its option where that was given; else only the way to choose another one is.
    """

    def written(setting: Setting) -> str:
        if setting.name != "folder":
            return as_option(setting)
        if setting.value is NOT_GIVEN:
            return "folder" if options.out else "folder with --name or --out"
        return as_option(Setting("out", setting.value)) if options.out else str(setting.value)

    return error.words(written)


def run(settings: Recipe, folder: Path, options: RunOptions) -> int:
    """Train, and print what came out."""
    from calibnorm.lab import tasks
    from calibnorm.lab.training.machine import check_machine, check_start

    # Before Lightning is imported, which takes seconds; `train` does it again, and compiles.
    task = tasks.of(settings)
    task.check()
    check_machine(replace(settings, compile=False), options.accelerator)
    from calibnorm.lab.training.folder import changed_sources, finished, read_timings

    check_start(task, options.accelerator, options.devices)
    from calibnorm.lab.training.interruption import Interruption
    from calibnorm.lab.training.run import train

    before = finished(folder, task) is not None
    advice = f"; the same command goes on from the last checkpoint ({folder})"
    with advised(advice), Interruption() as stop:
        watcher = _watcher(folder, settings, options) if first_process() else None
        try:
            result = train(settings, folder, watcher=watcher, stop=stop, **options.of_train())
        except KeyboardInterrupt:  # in a program that a second Ctrl-C does not end at once
            print(f"\ncalibnorm: stopped by Ctrl-C{advice}", file=sys.stderr)
            return 130
    if first_process():
        for path in changed_sources(folder) if before else []:
            print(f"{path} has changed since; choose another --name to train with the file as it is")
        print(f"{folder}: {'was finished before, with ' if before else ''}{result.sentence(task.headline)}")
        if not before and (timings := read_timings(folder)):
            print(timings[-1])
    return 0


def _watcher(folder: Path, settings: Recipe, options: RunOptions) -> Watcher:
    from calibnorm.lab import tasks
    from calibnorm.lab.training.noise import NoiseWatch
    from calibnorm.lab.training.watchers import Board, Previews, Several, screen

    task = tasks.of(settings)
    previews = Previews(folder, task) if type(task).preview is not tasks.Task.preview else None
    board = Board(folder) if options.tensorboard else None
    every, size = options.noise_every, settings.images_a_step
    noise = None if every is None else NoiseWatch(folder, every, size, None if board is None else board.scalars)
    others = (each for each in (noise, board, previews) if each is not None)
    return Several([screen(options.progress), *others])


def run_name(settings: Recipe) -> str:
    """Return the name of a run: what a comparison varies.

    >>> from calibnorm.lab.recipes import Classification
    >>> run_name(Classification("resnet11", "digits", 1, norm="bn:gamma_init=0.269", noise=(0.5, 0.2), seed=3))
    'bn-gamma_init=0.269-noise0.5,0.2-seed3'
    """
    from calibnorm.lab.models import parse_norm

    norm = slug(str(parse_norm(settings.norm)), "-")
    noise = "" if settings.noise is None else "-noise{:g},{:g}".format(*settings.noise)
    return f"{slug(settings.subject, '-')}-{norm}{noise}-seed{settings.seed}".removeprefix("-")


def listing() -> str:
    """Return how the command is called, and the recipes with a line on each."""
    width = max(map(len, RECIPES))
    return "\n".join([USAGE, *(f"  {name:<{width}}  {summary(name)}" for name in RECIPES)])
