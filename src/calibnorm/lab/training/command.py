"""`calibnorm train`: its options, what it prints and how it ends.

Importing this must stay quick: Lightning is imported when a run begins, not for help or a wrong option.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from calibnorm.errors import NOT_GIVEN, ReasonedError, RunFailed, Setting, Stopped, UsageError, as_option
from calibnorm.lab.arguments import parsed
from calibnorm.lab.naming import check_name, slug
from calibnorm.lab.recipes import RECIPES, Recipe, recipe, summary

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

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not self.checkpoint_minutes >= 0:
            raise UsageError(Setting("checkpoint_minutes", self.checkpoint_minutes), "must be 0 or more")
        if self.workers is not None and self.workers < 0:
            raise UsageError(Setting("workers", self.workers), "must be 0 or more")
        if self.out is not None and self.name is not None:
            raise UsageError(Setting("name"), "give it or ", Setting("out"), ", not both")
        if self.name is not None:
            check_name(self.name)


def main(args: Sequence[str]) -> int:
    """Run `calibnorm train` with what follows these words.

    Returns:
        The exit status: 0; 1 where the run cannot go on; 2 for input that cannot be used, before any training; 130 or
        143 after Ctrl-C or SIGTERM.

    Raises:
        UsageError: The input cannot be used, in process 0.
    """
    if args and args[0] in ("-h", "--help", "--list"):
        print(listing())
        return 0
    name, *rest = args or [""]
    if not name or name.startswith("-"):
        call = " ".join(["train", name]).strip()
        raise UsageError(f"{call}: a recipe comes first, such as {PROGRAM} digits-tiny ({PROGRAM} --list)")
    try:
        settings, options = read(name, rest)
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
            return status(error)
        if isinstance(error, UsageError):
            raise UsageError(in_words(error, options)) from error
        going_on = f"{error}; the same command goes on from there ({folder})"
        text = going_on if isinstance(error, Stopped) else in_words(error, options)
        print(f"calibnorm: {text}", file=sys.stderr)
        return status(error)


def read(name: str, words: Sequence[str]) -> tuple[Recipe, RunOptions]:
    """Return the settings and the options that words behind a recipe's name stand for.

    Raises:
        UsageError: The name or a word is not known, or a value cannot be used.
    """
    chosen = recipe(name)
    kinds = {"recipe": type(chosen), "options": RunOptions}
    both: Any = make_dataclass(
        "Both", [(name, Annotated[kind, tyro.conf.arg(name="")]) for name, kind in kinds.items()]
    )
    command = parsed(
        both,
        prog=f"{PROGRAM} {name}",
        description=summary(name),
        default=both(chosen, RunOptions()),
        args=words,
        config=(tyro.conf.OmitArgPrefixes,),
    )
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


def status(error: UsageError | RunFailed | Stopped) -> int:
    """Return the exit status of a run that did not come to its end."""
    if isinstance(error, Stopped):
        return 128 + error.number
    return 2 if isinstance(error, UsageError) else 1


def run(settings: Recipe, folder: Path, options: RunOptions) -> int:
    """Train, and print what came out."""
    from calibnorm.lab import tasks
    from calibnorm.lab.training.machine import check_machine

    # Before Lightning is imported, which takes seconds; `train` does it again, and compiles.
    task = tasks.of(settings)
    task.check()
    check_machine(replace(settings, compile=False), options.accelerator)
    from calibnorm.lab.training.folder import TIMING, finished
    from calibnorm.lab.training.interruption import Interruption
    from calibnorm.lab.training.run import train

    before = finished(folder, task) is not None
    with Interruption() as stop:
        try:
            result = train(
                settings,
                folder,
                data_root=options.data_root,
                accelerator=options.accelerator,
                devices=options.devices,
                num_nodes=options.num_nodes,
                workers=options.workers,
                override=options.override,
                checkpoint_minutes=options.checkpoint_minutes,
                watcher=_watcher(folder, options) if first_process() else None,
                stop=stop,
            )
        except KeyboardInterrupt:
            text = f"\ncalibnorm: stopped at once; the same command goes on from the last checkpoint ({folder})"
            print(text, file=sys.stderr)
            return 130
    if first_process():
        print(f"{folder}: {'was finished before, with ' if before else ''}{result.sentence(task.headline)}")
        if not before and (split := last_split(folder / TIMING)):
            print(split)
    return 0


def _watcher(folder: Path, options: RunOptions) -> Watcher:
    from calibnorm.lab.training.watchers import Board, Several, screen

    shown = screen(options.progress)
    return Several([shown, Board(folder)]) if options.tensorboard else shown


def last_split(path: Path) -> str | None:
    """Return the last line of timing.csv as a sentence."""
    import csv

    from calibnorm.lab.training.clock import Timing

    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        return None
    figures: dict[str, Any] = {key: int(text) if key == "epoch" else float(text) for key, text in rows[-1].items()}
    return str(Timing(**figures))


def run_name(settings: Recipe) -> str:
    """Return the name of a run: what a comparison varies.

    >>> from calibnorm.lab.recipes import Classification
    >>> run_name(Classification("resnet11", "digits", 1, norm="bn:gamma_init=0.269", noise=(0.5, 0.2), seed=3))
    'bn-gamma_init=0.269-noise0.5,0.2-seed3'
    """
    from calibnorm.lab.models import parse_norm

    norm = slug(str(parse_norm(settings.norm)), "-")
    noise = "" if settings.noise is None else "-noise{:g},{:g}".format(*settings.noise)
    return f"{norm}{noise}-seed{settings.seed}"


def listing() -> str:
    """Return how the command is called, and the recipes with a line on each."""
    width = max(map(len, RECIPES))
    return "\n".join([USAGE, *(f"  {name:<{width}}  {summary(name)}" for name in RECIPES)])


def first_process() -> bool:
    """Return whether this is the process that writes and speaks, by what torchrun or Fabric told it."""
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"
