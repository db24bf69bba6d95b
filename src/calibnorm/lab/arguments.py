"""The words of a command line become settings through tyro; what is wrong with them becomes one line.

tyro (1.0) draws what it refuses into a box of many lines; its hook for parse errors is private to it. So the box is
caught, and nothing but the option it is about is read from it: what was typed is in the words, what is allowed in the
settings' types.
"""

from __future__ import annotations

import difflib
import io
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import is_dataclass
from itertools import dropwhile, takewhile
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints, is_typeddict

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from calibnorm.errors import Setting, UsageError, as_option
from calibnorm.lab.recipes import Noise, described, parse_noise

T = TypeVar("T")

READERS = ConstructorRegistry()
"""How texts become values of some types; where no rule is for one, tyro's own is."""


def parsed(target: Callable[..., T], args: Sequence[str], *, prog: str, **options: Any) -> T:
    """Return the settings that words stand for; help is printed and ends the process, as by ``tyro.cli``.

    Args:
        target: A dataclass, or a function of some, which is called.
        args: The words behind the command's name.
        prog: The command's name.
        **options: As those of ``tyro.cli``.

    Raises:
        UsageError: An option is not known, a value is missing, or it is not what the option takes. Besides these, what
            the settings themselves raise.
    """
    box = io.StringIO()
    try:
        with READERS, redirect_stderr(box):
            settings: T = tyro.cli(target, prog=prog, args=args, config=(tyro.conf.OmitArgPrefixes,), **options)
    except SystemExit as stop:
        if stop.code and (problem := first_paragraph(box.getvalue())):
            raise UsageError(line(problem, args, option_types(target), prog)) from None
        sys.stderr.write(box.getvalue())
        raise
    sys.stderr.write(box.getvalue())
    return settings


def first_paragraph(box: str) -> str:
    """Return what a box of tyro's says first, below its title, as one line; what follows is help.

    Its frame is of lines, or of blanks and hyphens where the output cannot show lines.
    """
    rows = [row.strip("│| ") for row in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()]
    titles = [number for number, row in enumerate(rows) if re.search(r"\w", row)][:1]
    below = dropwhile(lambda row: not re.search(r"\w", row), rows[titles[0] + 1 :] if titles else [])
    return " ".join(takewhile(lambda row: re.search(r"\w", row) is not None, below))


def line(problem: str, args: Sequence[str], known: Mapping[str, Any], prog: str) -> str:
    """Return in a line what is wrong, of what tyro says: the words as they were typed, and what is allowed."""
    if problem.startswith("Unrecognized "):
        return unknown(problem.partition(": ")[2], args, known, prog)
    about = [name for name in known if re.search(rf"(?<![\w-]){name}(?![\w-])", problem)]
    if not about:
        return f"{problem} ({prog} --help)"
    name = max(about, key=len)
    words = typed(name, args)
    allowed = described(known[name], nothing="none")
    if len(words) == 1:
        return f"{words[0]}: a value is missing; must be {allowed}"
    near = difflib.get_close_matches(words[-1], choices(known[name]), 1)
    return f"{' '.join(words)}: must be {allowed}" + "".join(f"; did you mean {choice}?" for choice in near)


def unknown(listed: str, args: Sequence[str], known: Mapping[str, Any], prog: str) -> str:
    """Return in a line which word is not understood, the first that tyro lists."""
    squeezed = "".join(listed.split())  # the box has broken long words
    found = [number for number, word in enumerate(args) if word and squeezed.startswith("".join(word.split()))]
    if not found:
        return f"{listed}: is not known ({prog} --help)"
    number = max(found, key=lambda n: len(args[n]))
    word = args[number]
    if not word.startswith("-"):
        before = args[number - 1].replace("_", "-") if number else ""
        if known.get(re.sub("^--no-", "--", before)) is bool:
            return f"{args[number - 1]} {word}: takes no value"
        return f"{word}: belongs to no option ({prog} --help)"
    name = word.partition("=")[0].replace("_", "-")
    near = difflib.get_close_matches(name, known, 1) or [each for each in known if name.lstrip("-") in each][:1]
    advice = "".join(f"; did you mean {each}?" for each in near)
    return f"{' '.join(typed(word.partition('=')[0], args))}: is not known{advice} ({prog} --help)"


def typed(name: str, args: Sequence[str]) -> list[str]:
    """Return an option as it was typed, and its values: those of the last place where it is.

    >>> typed("--batch-size", ["--seed", "3", "--batch_size", "-4", "x", "--compile"])
    ['--batch_size', '-4', 'x']
    """
    return (places(name, args) or [[name]])[-1]


def places(name: str, args: Sequence[str]) -> list[list[str]]:
    """Return every place where an option is: as it was typed, and its values."""
    found = []
    for number, word in enumerate(args):
        given, equals, value = word.partition("=")
        if given.replace("_", "-") == name.replace("_", "-") and given.startswith("-"):
            rest = args[number + 1 :]
            end = next((n for n, other in enumerate(rest) if re.match(r"--?[A-Za-z]", other)), len(rest))
            found.append([given, *([value] if equals else rest[:end])])
    return found


def option_types(target: Callable[..., Any]) -> dict[str, Any]:
    """Return the types of a command's options by name, those of settings inside settings too."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(target).items():
        if is_dataclass(hint) or is_typeddict(hint):
            found |= option_types(hint)
        elif name != "return":
            found[as_option(Setting(name))] = hint
    return found


def choices(hint: Any) -> list[str]:
    """Return the words that a type allows, none where any will do.

    >>> choices(tuple[Literal["bn", "iebn"], ...]), choices(int)
    (['bn', 'iebn'], [])
    """
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [choice for kind in get_args(hint) for choice in choices(kind)]


@READERS.primitive_rule
def texts(kind: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[tuple[str, ...]] | None:
    """Texts are one or more: an option without a value would mean as much as no option, which nobody means."""
    if kind.type != tuple[str, ...] or tyro.conf.UseAppendAction in kind.markers:
        return None

    def read(words: list[str]) -> tuple[str, ...]:
        if not words:
            raise ValueError("needs one or more")
        return tuple(words)

    return PrimitiveConstructorSpec("*", "STR [STR ...]", read, lambda value: isinstance(value, tuple), list)


@READERS.primitive_rule
def noise(kind: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[tuple[float, float] | None] | None:
    """A noise is written 0.5,0.2 or 0.5 0.2, or none."""
    if kind.type != Noise:
        return None
    return PrimitiveConstructorSpec(
        "*",
        "N_a,N_b|none",
        lambda words: parse_noise(",".join(words)),
        lambda value: value is None or isinstance(value, tuple),
        lambda value: ["none"] if value is None else ["{:g},{:g}".format(*value)],
    )


@READERS.primitive_rule
def optional(kind: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """What may be left out is put back to that by the word none."""
    others = [each for each in get_args(kind.type) if each is not type(None)]
    one = len(others) == 1 and len(get_args(kind.type)) == 2
    if get_origin(kind.type) not in (Union, UnionType) or not one or kind.type == Noise:
        return None
    inner = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(others[0], kind.markers))
    assert isinstance(inner, PrimitiveConstructorSpec)
    return PrimitiveConstructorSpec(
        inner.nargs,
        f"{inner.metavar}|none",
        lambda words: None if [word.lower() for word in words] == ["none"] else inner.instance_from_str(words),
        lambda value: value is None or inner.is_instance(value),
        lambda value: ["none"] if value is None else inner.str_from_instance(value),
    )
