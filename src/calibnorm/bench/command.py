"""The command line of `calibnorm bench` and of ``python -m calibnorm.bench``."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

from calibnorm._stopping import advised
from calibnorm.bench.config import Config, InferenceConfig, LayerConfig, ModelConfig
from calibnorm.bench.run import run
from calibnorm.errors import Setting, UnknownOption, UsageError, as_option, exit_status, near

PROGRAM = "calibnorm bench"
DESCRIPTION = """Time layers, whole training steps or inference against nn.BatchNorm2d. Writes a CSV, the environment
and a page with pictures. On a machine with torch alone: python -m calibnorm.bench."""
# A fresh output costs page faults that hide everything else, for all implementations alike; these keep freed memory in
# the process. glibc reads them when a process starts.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "8000000000"}


KINDS: dict[Any, tuple[str, Callable[[str], Any]]] = {
    str: ("a text", str),
    tuple[str, ...]: ("one or more texts", str),
    tuple[int, ...]: ("one or more whole numbers", int),
    int: ("a whole number", int),
    int | None: ("a whole number or none", lambda word: None if word.lower() == "none" else int(word)),
    Path: ("a folder", Path),
}
"""What a setting of a type takes, in words, and what reads a word."""
BENCHES: dict[str, type[Config]] = {"layer": LayerConfig, "model": ModelConfig, "inference": InferenceConfig}


def call(words: Sequence[str]) -> int:
    """Run a bench.

    Args:
        words: What follows `calibnorm bench`.

    Returns:
        The exit status: 0; 1 for wrong values.

    Raises:
        UsageError: A word is not known, or a value cannot be used.
        KeyboardInterrupt: After Ctrl-C; the text says that nothing was written.
    """
    try:
        config = parse(words)
        pin_allocator()
        with advised("; nothing was written"):
            return run(config)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped by Ctrl-C; nothing was written") from None


def main(words: Sequence[str]) -> int:
    """Run a bench, and return its exit status; what cannot be used is a line and status 2, Ctrl-C status 130."""
    try:
        return call(words)
    except UsageError as error:
        print(f"calibnorm: {error.words(as_option)}", file=sys.stderr)
        return exit_status(error)
    except KeyboardInterrupt as error:
        print(f"\ncalibnorm: {error}", file=sys.stderr)
        return exit_status(error)


def pin_allocator() -> None:
    """Run this very command again with the allocator pinned, unless it is, or the system is not Linux."""
    if sys.platform == "linux" and any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **ALLOCATOR})


def parse(words: Sequence[str]) -> Config:
    """Return the settings that words stand for; help is printed and ends the process.

    Raises:
        UsageError: A word is not known, or a value cannot be used.
    """
    parser = argparse.ArgumentParser(PROGRAM, description=DESCRIPTION)
    benches = parser.add_subparsers(metavar="|".join(BENCHES))
    parsers = {
        name: benches.add_parser(
            name, help=str(config.__doc__).splitlines()[0], description=config.__doc__,
            usage=f"{PROGRAM} {name} [options]", allow_abbrev=False, exit_on_error=False,
        )
        for name, config in BENCHES.items()
    }  # fmt: skip
    which, *rest = words or [""]
    if which in ("-h", "--help"):
        parser.parse_args([which])
    if which not in BENCHES:
        wrong = "is not known" if which else "needs a word"
        raise UsageError(f"{f'bench {which}'.strip()}: {wrong}; {nearest(which, BENCHES)} (calibnorm --help)")
    kinds = add_options(parsers[which], BENCHES[which])
    try:
        found, unknown = parsers[which].parse_known_args([hyphened(word) for word in rest])
    except argparse.ArgumentError as error:  # all that argparse itself still refuses
        name = str(error.argument_name).removeprefix("--").replace("-", "_")
        raise UsageError(Setting(name), f"a value is missing; must be {kinds[name]}") from None
    check_rest(parsers[which], unknown)
    values: dict[str, Any] = {name: tuple(of) if isinstance(of, list) else of for name, of in vars(found).items()}
    return BENCHES[which](**values)


def add_options(parser: argparse.ArgumentParser, config: type[Config]) -> dict[str, str]:
    """Give a parser an option for every setting; return in words what each takes."""
    hints, kinds = get_type_hints(config), dict[str, str]()
    for setting in sorted(fields(config), key=lambda each: bool(each.kw_only)):  # those of all benches come last
        name, default, several = (
            setting.name,
            setting.default,
            hints[setting.name] in (tuple[str, ...], tuple[int, ...]),
        )
        kinds[name], read = KINDS[hints[name]]
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        explained = setting.metadata["help"] + (f" (default: {shown})" if default not in ((), None) else "")
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=partial(value, name, kinds[name], read), nargs="+" if several else None,
            metavar=name.upper().removesuffix("S") if several else name.upper(), default=default, help=explained,
        )  # fmt: skip
    return kinds


def value(setting: str, kind: str, read: Callable[[str], Any], word: str) -> Any:
    """Return the value of a word, so that what is wrong with it is said in one line, as everywhere.

    Raises:
        UsageError: The word is no such value.
    """
    try:
        return read(word)
    except ValueError:
        raise UsageError(Setting(setting, word), f"must be {kind}") from None


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
    known = [option for action in parser._actions for option in action.option_strings]
    if not first.startswith("-"):
        network = f"; did you mean --network {first}?" if "--network" in known and first[0].isalpha() else ""
        raise UsageError(f"{first}: belongs to no option{network} ({parser.prog} --help)")
    values = [word for word in words[1:2] if not word.startswith("-")]
    text = f"{' '.join([first, *values])}: is not known{near(first, known)} ({parser.prog} --help)"
    raise UnknownOption(first, text)


def nearest(word: str, known: Iterable[str]) -> str:
    """Return advice for a word that is not known."""
    alike = difflib.get_close_matches(word, known, 1)
    return f"did you mean {alike[0]}?" if alike else f"choose from {', '.join(known)}"
