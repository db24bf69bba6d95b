"""The command line of `calibnorm bench` and of ``python -m calibnorm.bench``."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from calibnorm.bench.config import LayerConfig, ModelConfig
from calibnorm.bench.run import run
from calibnorm.errors import Setting, UsageError, as_option

PROGRAM = "calibnorm bench"
DESCRIPTION = """Time layers or whole training steps against nn.BatchNorm2d. Writes a CSV, the environment, a summary
and pictures. On a machine with torch alone: python -m calibnorm.bench."""
# A fresh output costs page faults that hide everything else, for all implementations alike; these keep freed memory in
# the process. glibc reads them when a process starts.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "8000000000"}


class Kind(NamedTuple):
    """What an option takes, in words and as a function of a word; ``tuple`` takes one or more words."""

    words: str
    read: Callable[[str], Any]


TEXT = Kind("a text", str)
TEXTS = Kind("one or more texts", tuple)
WHOLE = Kind("a whole number", int)
WHOLE_OR_NONE = Kind("a whole number or none", lambda word: None if word.lower() == "none" else int(word))
FOLDER = Kind("a folder", Path)

THREADS = ("threads", WHOLE_OR_NONE, "torch's CPU threads; its own choice by default")
DEVICE = ("device", TEXT, "auto (CUDA where there is one), cpu, cuda or cuda:N")
LAYER = (
    ("preset", TEXT, "quick or full"),
    ("shapes", TEXTS, "NxCxHxW, such as 32x64x56x56, or resnet50, resnet164, tiny"),
    ("layouts", TEXTS, "NCHW, channels_last; both by default"),
    ("dtypes", TEXTS, "float32, bfloat16, float16; the first two by default, on CUDA with --preset full all three"),
    ("ops", TEXTS, "norm, norm+relu, norm+add+relu"),
    ("modes", TEXTS, "forward (training, without gradients), forward+backward, eval; all by default"),
    (
        "impls",
        TEXTS,
        "nn.BatchNorm2d (always measured), cn.IEBN2d, authors.RBN, cn.GN2d, compiled:cn.RBN2d and so on, and with a "
        "ReLU timm.BatchNormAct2d; family stands for all methods beside BN, IEBN and RBN",
    ),
    ("load", TEXTS, "modules or Python files to import first, which register methods of your own"),
    (
        "repeats",
        WHOLE,
        "least number of timed calls of each implementation, at least 20; short calls get up to ten times as many",
    ),
    THREADS,
    DEVICE,
    (
        "out",
        FOLDER,
        "folder for layer.csv, layer.json (settings and environment), layer.md (summary) and a PNG for every operation",
    ),
)
MODEL = (
    (
        "network",
        TEXT,
        "resnet50 or resnet164 (the papers', for 32x32 images), which need torch alone, or a network of torchvision or "
        "timm by name, such as resnet18 or mobilenetv2_100",
    ),
    ("batch_size", WHOLE, "images a step"),
    ("image_size", WHOLE_OR_NONE, "height and width of the images; by default 224, and 32 for resnet164"),
    ("layouts", TEXTS, "NCHW, channels_last"),
    ("dtypes", TEXTS, "float32; bfloat16 and float16 run under autocast"),
    (
        "impls",
        TEXTS,
        "nn.BatchNorm2d (the network as it comes, always measured), cn.BN2d, cn.IEBN2d, cn.RBN2d, and "
        "fused:nn.BatchNorm2d, fused:cn.RBN2d and so on, the same after cn.fuse",
    ),
    (
        "modes",
        TEXTS,
        "eager, compiled (torch.compile of the network), graph (the step in a CUDA graph); each beside plain BatchNorm "
        "in the same mode",
    ),
    ("repeats", WHOLE, "timed steps of each network, at least 20"),
    THREADS,
    DEVICE,
    ("out", FOLDER, "folder for model-NETWORK.csv, .json and .md"),
)
BENCHES: dict[str, tuple[type[LayerConfig] | type[ModelConfig], Iterable[tuple[str, Kind, str]]]] = {
    "layer": (LayerConfig, LAYER),
    "model": (ModelConfig, MODEL),
}


def main(words: Sequence[str]) -> int:
    """Run a bench.

    Args:
        words: What follows `calibnorm bench`.

    Returns:
        The exit status: 0; 1 for wrong values; 2 for input that cannot be used, which the message names; 130 after
        Ctrl-C.
    """
    try:
        config = parse(words)
        pin_allocator()
        return run(config)
    except UsageError as error:
        print(f"calibnorm: {error.words(as_option)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ncalibnorm: stopped by Ctrl-C; nothing was written", file=sys.stderr)
        return 130


def pin_allocator() -> None:
    """Run this very command again with the allocator pinned, unless it is, or the system is not Linux."""
    if sys.platform == "linux" and any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **ALLOCATOR})


class Option(argparse.Action):
    """An option whose words are read here, so that what is wrong with them is said in one line, as everywhere."""

    def __init__(self, option_strings: Sequence[str], dest: str, kind: Kind, **options: Any) -> None:
        self.kind = kind
        super().__init__(option_strings, dest, nargs="*", **options)

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, words: Any, option: str | None = None
    ) -> None:
        """Read the words behind the option."""
        if not words:
            raise UsageError(Setting(self.dest), f"a value is missing; must be {self.kind.words}")
        if self.kind is TEXTS:
            setattr(namespace, self.dest, tuple(words))
            return
        first, *others = words
        check_rest(parser, others)
        try:
            setattr(namespace, self.dest, self.kind.read(first))
        except ValueError:
            raise UsageError(Setting(self.dest, first), f"must be {self.kind.words}") from None


class Help(argparse.HelpFormatter):
    """Help that shows how many words an option takes."""

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        name = str(action.metavar or default_metavar)
        return f"{name} [{name} ...]" if isinstance(action, Option) and action.kind is TEXTS else name


def parse(words: Sequence[str]) -> LayerConfig | ModelConfig:
    """Return the settings that words stand for; help is printed and ends the process.

    Raises:
        UsageError: A word is not known, or a value cannot be used.
    """
    parser = argparse.ArgumentParser(PROGRAM, description=DESCRIPTION)
    benches = parser.add_subparsers(metavar="layer|model")
    parsers = {}
    for name, (config, options) in BENCHES.items():
        text = str(config.__doc__)
        parsers[name] = benches.add_parser(
            name, help=text.splitlines()[0], description=text, usage=f"{PROGRAM} {name} [options]",
            formatter_class=Help, allow_abbrev=False,
        )  # fmt: skip
        for setting, kind, explained in options:
            default = getattr(config, setting)
            shown = " ".join(default) if isinstance(default, tuple) else default
            explained += "" if default in ((), None) else f" (default: {shown})"
            metavar = setting.upper() if kind is not TEXTS else setting.upper().removesuffix("S")
            parsers[name].add_argument(
                f"--{setting.replace('_', '-')}", action=Option, kind=kind, default=default, metavar=metavar,
                help=explained.replace("%", "%%"),
            )  # fmt: skip
    which, *rest = words or [""]
    if which in ("-h", "--help"):
        parser.parse_args([which])
    if which not in BENCHES:
        wrong = "is not known" if which else "needs a word"
        raise UsageError(f"{f'bench {which}'.strip()}: {wrong}; {nearest(which, BENCHES)} (calibnorm --help)")
    found, unknown = parsers[which].parse_known_args([hyphened(word) for word in rest])
    check_rest(parsers[which], unknown)
    return BENCHES[which][0](**vars(found))


def hyphened(word: str) -> str:
    """Return an option with hyphens, and any other word as it is: --batch_size will do.

    >>> hyphened("--batch_size=2"), hyphened("my_file.py")
    ('--batch-size=2', 'my_file.py')
    """
    name, equals, value = word.partition("=")
    return (name.replace("_", "-") if name.startswith("--") else name) + equals + value


def check_rest(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Refuse words that no option has taken.

    Raises:
        UsageError: There are some.
    """
    if not words:
        return
    first = words[0].partition("=")[0]
    if not first.startswith("-"):
        raise UsageError(f"{first}: belongs to no option ({parser.prog} --help)")
    values = [word for word in words[1:2] if not word.startswith("-")]
    known = [option for action in parser._actions for option in action.option_strings]
    near = difflib.get_close_matches(first, known, 1)
    advice = f"; did you mean {near[0]}?" if near else ""
    raise UsageError(f"{' '.join([first, *values])}: is not known{advice} ({parser.prog} --help)")


def nearest(word: str, known: Iterable[str]) -> str:
    """Return advice for a word that is not known."""
    near = difflib.get_close_matches(word, known, 1)
    return f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}"
