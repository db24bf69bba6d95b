"""The command line: one function a subcommand, one line each in COMMANDS."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Collection, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial, wraps
from importlib.metadata import version
from typing import Annotated, ParamSpec

import tyro

from calibnorm.errors import UsageError, as_option
from calibnorm.lab.arguments import READERS, parsed
from calibnorm.lab.demo.config import DemoConfig
from calibnorm.lab.experiments.config import CompareConfig, TableConfig

DESCRIPTION = """Experiments with batch normalization that is calibrated by each instance (IEBN, RBN).

Start with `calibnorm demo`. Every subcommand explains its options: `calibnorm demo --help`.
`calibnorm --version` prints the version."""
MARKERS = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes)
HELP = ("-h", "--help")

P = ParamSpec("P")
Status = int | None
"""An exit status; None is 0."""


def when_read(function: Callable[P, Status]) -> Callable[P, Callable[[], Status]]:
    """Make a subcommand one that returns what it will do: its words are read first, and then it runs."""

    @wraps(function)
    def ready(*args: P.args, **kwargs: P.kwargs) -> Callable[[], Status]:
        return partial(function, *args, **kwargs)

    return ready


@when_read
def demo(config: Annotated[DemoConfig, tyro.conf.arg(name="")]) -> None:
    """Train BN, IEBN and RBN side by side on real handwritten digits.

    The same small ResNet, from the same initial weights and in the same batches, without and with the constant noise
    attack of the IEBN paper. Prints a table and writes learning curves, a picture of the learned gates and a report.
    About two minutes on two CPU cores; nothing is downloaded.
    """
    # Here, so that `calibnorm --help` does not wait for scikit-learn and matplotlib.
    from calibnorm.lab.demo.run import run

    run(config)


@when_read
def bench() -> None:
    """Time layers or whole training steps against nn.BatchNorm2d.

    Times of one layer (`calibnorm bench layer`) or of a network's training step (`calibnorm bench model`). Writes a
    CSV, the environment, a summary and pictures. On a machine with torch alone:
    `python -m calibnorm.bench`.
    """
    # As with `train`: the bench reads its own words, also where tyro is not installed.
    raise AssertionError("calibnorm bench is bench.command.main's")


@when_read
def train() -> None:
    """Train a recipe into a folder, resumable: the papers' settings, or small ones for a CPU.

    `calibnorm train --list` lists the recipes, `calibnorm train RECIPE --help` a recipe's settings.
    """
    # For `calibnorm --help`, which prints this text: `main` hands "train" on before anything looks for this function.
    raise AssertionError("calibnorm train is training.command.main's")


@when_read
def compare(config: Annotated[CompareConfig, tyro.conf.arg(name="")]) -> int:
    """Train norms side by side: each with the same seeds, without and with noise attacks.

    Prints mean, standard deviation and 95 % intervals, differences from the first norm paired by seed, and what failed;
    writes a report, learning curves, and a CSV with every run. Finished runs are used again, unfinished ones go on: the
    same command after Ctrl-C, or with more seeds or norms, trains what is missing. Several of it may share a folder.
    """
    from calibnorm.lab.experiments.compare import run

    return run(config)


@when_read
def table(config: Annotated[TableConfig, tyro.conf.arg(name="")]) -> int:
    """Make a table or figure of the IEBN or the RBN paper again: ours beside what was printed.

    `calibnorm table iebn-2` runs in minutes on digits, which shows how it goes; --scale small takes a part of
    FashionMNIST, --scale paper the paper's own data, networks and epochs. Writes a report with learning curves. What is
    finished is not trained again: the same command after Ctrl-C goes on.
    """
    from calibnorm.lab.experiments.tables.run import run

    return run(config)


COMMANDS: dict[str, Callable[..., Callable[[], Status]]] = {
    "demo": demo,
    "bench": bench,
    "train": train,
    "compare": compare,
    "table": table,
}


def main(args: Sequence[str]) -> int:
    """Run one subcommand.

    Args:
        args: What follows the command's name, such as ``["demo", "--quick"]``.

    Returns:
        The exit status: 0; 1 where a worker process died or a bench met wrong values; 2 for input that cannot be
        used, which the message names; 130 after Ctrl-C.
    """
    if list(args) in (["--version"], ["-V"]):
        print(f"calibnorm {version('calibnorm')}")
        return 0
    try:
        return read(list(args) or ["--help"])() or 0
    except UsageError as error:
        print(f"calibnorm: {error.words(as_option)}", file=sys.stderr)
        return 2
    except BrokenProcessPool:
        print("calibnorm: a worker process died, perhaps for want of memory; nothing was written", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ncalibnorm: stopped by Ctrl-C; nothing was written", file=sys.stderr)
        return 130


def read(words: Sequence[str]) -> Callable[[], Status]:
    """Return what a command line asks for, ready to run; help is printed and ends the process.

    Raises:
        UsageError: A command or an option is not known, or a value cannot be used.
    """
    name, *rest = words
    if name == "train":
        # Its options depend on the recipe, which is its first word.
        from calibnorm.lab.training.command import main as train_main

        return partial(train_main, rest)
    if name == "bench":
        from calibnorm.bench.command import main as bench_main

        return partial(bench_main, rest)
    if set(HELP) & set(words):
        with READERS:
            asked: Callable[[], Status] = tyro.extras.subcommand_cli_from_dict(
                COMMANDS, prog="calibnorm", description=DESCRIPTION, args=words, config=MARKERS
            )
            return asked
    check_word("", name, COMMANDS)
    return parsed(COMMANDS[name], rest, prog=f"calibnorm {name}", config=MARKERS)


def check_word(before: str, word: str, known: Collection[str]) -> None:
    """Refuse a word that is no command.

    Raises:
        UsageError: It is none; the text names those that there are.
    """
    if word not in known:
        near = difflib.get_close_matches(word, known, 1)
        wrong = "is not known" if word else "needs a word"
        advice = f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}"
        raise UsageError(f"{(before + word).strip()}: {wrong}; {advice} (calibnorm --help)")
