"""The command line: one function a subcommand, one line each in COMMANDS."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from typing import Annotated

import tyro

from calibnorm.lab.bench.config import LayerConfig, ModelConfig
from calibnorm.lab.demo.config import DemoConfig
from calibnorm.lab.errors import UsageError
from calibnorm.lab.experiments.config import CompareConfig

DESCRIPTION = """Experiments with batch normalization that is calibrated by each instance (IEBN, RBN).

Start with `calibnorm demo`. Every subcommand explains its options: `calibnorm demo --help`.
`calibnorm --version` prints the version."""


def demo(config: Annotated[DemoConfig, tyro.conf.arg(name="")]) -> None:
    """Train BN, IEBN and RBN side by side on real handwritten digits.

    The same small ResNet, from the same initial weights and in the same batches, without and with the constant noise
    attack of the IEBN paper. Prints a table and writes learning curves, a picture of the learned gates and a report.
    About two minutes on two CPU cores; nothing is downloaded.
    """
    # Here, so that `calibnorm --help` does not wait for scikit-learn and matplotlib.
    from calibnorm.lab.demo.run import run

    run(config)


def bench(
    what: Annotated[LayerConfig, tyro.conf.subcommand("layer")] | Annotated[ModelConfig, tyro.conf.subcommand("model")],
) -> int:
    """Time layers or whole training steps against nn.BatchNorm2d.

    Times of one layer (`calibnorm bench layer`) or of a network's training step (`calibnorm bench model`). Writes a
    CSV, the environment, a summary and pictures. On a machine with torch alone:
    `python -m calibnorm.lab.bench`.
    """
    from calibnorm.lab.bench.run import run
    from calibnorm.lab.bench.start import pin_allocator

    pin_allocator()
    return run(what)


def compare(config: Annotated[CompareConfig, tyro.conf.arg(name="")]) -> int:
    """Train norms side by side: each with the same seeds, without and with noise attacks.

    Prints mean, standard deviation and 95 % intervals, differences from the first norm paired by seed, and what failed;
    writes a report, learning curves, and a CSV with every run. Finished runs are used again, unfinished ones go on: the
    same command after Ctrl-C, or with more seeds or norms, trains what is missing. Several of it may share a folder.
    """
    from calibnorm.lab.experiments.compare import run

    return run(config)


COMMANDS: dict[str, Callable[..., int | None]] = {
    "demo": demo,
    "bench": bench,
    "compare": compare,
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
        status: int | None = tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="calibnorm",
            description=DESCRIPTION,
            args=list(args) or ["--help"],
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes),
        )
    except UsageError as error:
        print(f"calibnorm: {error}", file=sys.stderr)
        return 2
    except BrokenProcessPool:
        print("calibnorm: a worker process died, perhaps for want of memory; nothing was written", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ncalibnorm: stopped by Ctrl-C; nothing was written", file=sys.stderr)
        return 130
    return status or 0
