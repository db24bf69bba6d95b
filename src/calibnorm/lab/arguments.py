"""The words of a command line become settings through tyro; what is wrong with them becomes one line.

tyro (1.0) draws what it refuses into a box of many lines; its hook for parse errors is private to it. So nothing of the
box is read: the first option with which tyro refuses the words is the one that is wrong, what was typed is in the
words, and what is allowed in the settings' types.
"""

from __future__ import annotations

import difflib
import io
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import is_dataclass
from types import UnionType
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints, is_typeddict

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from calibnorm.errors import ALIKE, Setting, UnknownOption, UsageError, as_option, near
from calibnorm.lab.recipes import RECIPES, Noise, described, parse_noise

T = TypeVar("T")

SYNONYMS = {"--augmentation": "--augment"}
"""Other names of options."""

OPTION = r"--?[A-Za-z]"
"""How an option begins; a negative number does not."""

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
    known = option_types(target)
    args = [SYNONYMS.get(name, name) + equals + value for name, equals, value in (word.partition("=") for word in args)]

    def read(words: Sequence[str]) -> tuple[T, list[str]]:
        call: Any = tyro.cli  # its overloads do not know that these options are others'
        with READERS, redirect_stderr(io.StringIO()) as said:
            found: tuple[T, list[str]] = call(
                target, prog=prog, args=words, config=(tyro.conf.OmitArgPrefixes,), return_unknown_args=True, **options
            )
        sys.stderr.write(said.getvalue())
        return found

    many = [name for name, hint in known.items() if get_origin(hint) is tuple]
    for name in set(many).difference(marked(target, tyro.conf.UseAppendAction)):  # the first would be forgotten
        if len(given := places(name, args)) > 1:
            raise UsageError(f"{given[-1][0]}: is there twice; name all values behind one")
    try:
        settings, left = read(args)
    except SystemExit as stop:
        if not stop.code:
            raise
        if (option := first_refused(read, args)) is None:
            word = marked(target, tyro.conf.Positional)[0].strip("-").upper()
            raise UsageError(f"{word}: is missing ({prog} --help)") from None
        raise UsageError(wrong_value(option, args, known)) from None
    if left:
        raise unknown(left[0], args, target, prog)
    return settings


def first_refused(read: Callable[[Sequence[str]], object], args: Sequence[str]) -> str | None:
    """Return the first option with which words are refused, None where they are refused without any."""
    starts = [number for number, word in enumerate(args) if re.match(OPTION, word)]
    for start, end in zip([None, *starts], [*starts, len(args)], strict=True):
        try:
            read(args[:end])
        except SystemExit:
            return None if start is None else args[start].partition("=")[0]
        except UsageError:  # a setting that an option behind may put right
            continue
    raise AssertionError("words are refused that are not")


def wrong_value(option: str, args: Sequence[str], known: Mapping[str, Any]) -> str:
    """Return in a line what is wrong with an option's value: the words as they were typed, and what is allowed."""
    name = option.replace("_", "-")
    words, allowed = typed(name, args), described(known[name], nothing="none")
    if len(words) == 1:
        return f"{words[0]}: a value is missing; must be {allowed}"
    meant = ALIKE.get(words[-1], words[-1])
    alike = difflib.get_close_matches(meant, choices(known[name]), 1, 0.7)  # "gpu" is no "cpu"
    return f"{' '.join(words)}: must be {allowed}" + "".join(f"; did you mean {choice}?" for choice in alike)


def unknown(word: str, args: Sequence[str], target: Callable[..., Any], prog: str) -> UsageError:
    """Return the error of a word that no option has taken."""
    known, here = option_types(target), option_names(target)
    if word.startswith("-"):
        name = word.partition("=")[0].replace("_", "-")
        if name in known:
            return UsageError(f"{word}: is written without its name, as the first word ({prog} --help)")
        text = f"{' '.join(typed(word.partition('=')[0], args))}: is not known{near(name, known)} ({prog} --help)"
        return UnknownOption(name, text)
    number = next(number for number, each in enumerate(args) if each == word or each.endswith(f"={word}"))
    before = args[number].partition("=")[0] if args[number] != word else args[number - 1] if number else ""
    if known.get(re.sub("^--no-", "--", before.replace("_", "-"))) is bool:
        return UsageError(f"{before} {word}: takes no value")
    option = next((each for each in reversed(args[:number]) if re.match(OPTION, each)), None)
    if option is None:
        recipe = f"; did you mean --recipe {word}?" if word in RECIPES and "--recipe" in here else ""
        return UsageError(f"{word}: is a word too much{recipe} ({prog} --help)")
    if option.partition("=")[0].replace("_", "-") in marked(target, tyro.conf.UseAppendAction):
        given = typed(option, args)
        return UsageError(f"{' '.join(given)}: takes one word at a time; {one_word_each(*given)}")
    return UsageError(f"{word}: belongs to no option ({prog} --help)")


def one_word_each(option: str, *words: str) -> str:
    """Return how words are written behind an option that takes one, and may be there again.

    >>> one_word_each("--noise", "0.5", "0.2"), one_word_each("--noise", "none", "0.5,0.2")
    ('write --noise 0.5,0.2', 'write --noise none --noise 0.5,0.2')
    """
    numbers = all(re.fullmatch(r"[-+.\deE]+", word) for word in words)  # the two of one noise
    return f"write {option} {','.join(words)}" if numbers else "write " + " ".join(f"{option} {word}" for word in words)


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
            end = next((n for n, other in enumerate(rest) if re.match(OPTION, other)), len(rest))
            found.append([given, *([value] if equals else rest[:end])])
    return found


def given(args: Sequence[str]) -> set[str]:
    """Return the settings that words give a value, by name.

    >>> sorted(given(["digits-tiny", "--batch-size=4", "--milestones", "3", "6", "--gamma", "-0.5"]))
    ['batch_size', 'gamma', 'milestones']
    """
    names = (word.partition("=")[0] for word in args if re.match(OPTION, word))
    return {SYNONYMS.get(name, name).strip("-").replace("-", "_") for name in names}


def option_types(target: Callable[..., Any], include_extras: bool = False) -> dict[str, Any]:
    """Return the types of a command's options by name, those of settings inside settings too."""
    found: dict[str, Any] = {}
    for (name, hint), full in zip(
        get_type_hints(target).items(), get_type_hints(target, include_extras=True).values(), strict=True
    ):
        if is_dataclass(hint) or is_typeddict(hint):
            found |= option_types(hint, include_extras)
        elif name != "return" and get_origin(hint) is not ClassVar:
            found[as_option(Setting(name))] = full if include_extras else hint
    return found


def option_names(target: Callable[..., Any]) -> list[str]:
    """Return the names of a command's options, without the settings that are words of their own."""
    return sorted(option_types(target).keys() - marked(target, tyro.conf.Positional))


def marked(target: Callable[..., Any], marker: Any) -> list[str]:
    """Return the options whose types have one of tyro's markers."""
    full = option_types(target, include_extras=True)
    return [name for name, hint in full.items() if marker in getattr(hint, "__metadata__", ())]


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
