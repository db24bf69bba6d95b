"""`calibnorm train`: its options, what it prints and how it ends.

Importing this must stay quick: Lightning is imported when a run begins, not for help or a wrong option.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from calibnorm.errors import RunFailed, Stopped, UsageError
from calibnorm.lab.arguments import parsed
from calibnorm.lab.naming import check_name, slug
from calibnorm.lab.recipes import RECIPES, Recipe, as_typed, named_as_typed, recipe, summary

if TYPE_CHECKING:
    from calibnorm.lab.training.watching import Watcher

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
            raise UsageError(f"--checkpoint-minutes {self.checkpoint_minutes}: must be 0 or more")
        if self.workers is not None and self.workers < 0:
            raise UsageError(f"--workers {self.workers}: must be 0 or more")
        if self.out is not None and self.name is not None:
            raise UsageError("--name: give it or --out, not both")
        if self.name is not None:
            check_name(self.name)


@dataclass(frozen=True)
class _Command:
    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    options: Annotated[RunOptions, tyro.conf.arg(name="")]


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
        command = parsed(
            _Command,
            prog=f"{PROGRAM} {name}",
            description=summary(name) if name in RECIPES else "",
            default=_Command(recipe(name), RunOptions()),
            args=rest,
            config=(tyro.conf.OmitArgPrefixes,),
        )
        folder = command.options.out or Path("runs") / name / (command.options.name or run_name(command.recipe))
    except UsageError:
        if not first_process():  # all have the same words, and process 0 says it
            return 2
        raise
    try:
        return run(command.recipe, folder, command.options)
    except (UsageError, RunFailed, Stopped) as error:
        if not first_process():
            if isinstance(error, Stopped) or error.shared:  # process 0 says it
                if "RANK" not in os.environ:  # Fabric kills process 0, which is about to end, for one that has failed
                    return 0
            else:
                number = os.environ.get("RANK", os.environ.get("LOCAL_RANK"))
                print(f"calibnorm: process {number}: {said(error, command, folder)}", file=sys.stderr)
            return status(error)
        if isinstance(error, UsageError):
            raise UsageError(said(error, command, folder)) from error
        advice = f"; the same command goes on from there ({folder})" if isinstance(error, Stopped) else ""
        print(f"calibnorm: {error}{advice}", file=sys.stderr)
        return status(error)


def said(error: Exception, command: _Command, folder: Path) -> str:
    """Return an error's text with the options that the user has typed, or can type."""
    text = as_typed(str(error), command.recipe)
    if command.options.out is None:
        text = text.replace(f"--out {folder}: ", f"{folder}: ")
        text = text.replace("choose another folder", "choose another folder with --name or --out")
    return text


def status(error: UsageError | RunFailed | Stopped) -> int:
    """Return the exit status of a run that did not come to its end."""
    if isinstance(error, Stopped):
        return 128 + error.number
    return 2 if isinstance(error, UsageError) else 1


def run(settings: Recipe, folder: Path, options: RunOptions) -> int:
    """Train, and print what came out."""
    from calibnorm.lab.training import inputs

    # Before Lightning is imported, which takes seconds; `train` does it again, and compiles.
    inputs.check(settings)
    inputs.check_machine(replace(settings, compile=False), options.accelerator)
    from calibnorm.lab.training.folder import TIMING, finished
    from calibnorm.lab.training.interruption import Interruption
    from calibnorm.lab.training.running import train

    before = finished(folder, settings) is not None
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
            said = f"\ncalibnorm: stopped at once; the same command goes on from the last checkpoint ({folder})"
            print(said, file=sys.stderr)
            return 130
    if first_process():
        print(f"{folder}: {'was finished before, with ' if before else ''}{result}")
        if not before and (split := last_split(folder / TIMING)):
            print(split)
    return 0


def _watcher(folder: Path, options: RunOptions) -> Watcher:
    from calibnorm.lab.training.watching import Board, Several, screen

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

    >>> run_name(Recipe("resnet11", "digits", 1, norm="bn:gamma_init=0.269", noise=(0.5, 0.2), seed=3))
    'bn-gamma_init=0.269-noise0.5,0.2-seed3'
    """
    from calibnorm.lab.models import parse_norm

    with named_as_typed(settings):
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
