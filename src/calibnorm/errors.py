"""Errors of the commands: they carry setting, value and reason, and whoever prints them puts them into words.

The Python interface speaks of arguments (``batch_size=0: must be at least 1``), the command line of options
(``--batch-size 0: must be at least 1``). Both are words of one error, so nobody rewrites a text.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

NOT_GIVEN = object()


class Setting(NamedTuple):
    """A setting in the text of an error, with the value that came, or by its name alone."""

    name: str
    value: Any = NOT_GIVEN

    def __reduce__(self) -> tuple[type[Setting], tuple[Any, ...]]:
        """Keep "not given" what it is in another process."""
        return Setting, (self.name,) if self.value is NOT_GIVEN else tuple(self)


Words = Callable[[Setting], str]
"""How a setting is written."""


class ReasonedError(Exception):
    """An error whose text is made of parts.

    Args:
        *parts: Texts and settings, joined as they stand; the setting that the error is about comes first.

    Attributes:
        shared: Whether every process of a run has this error, so that process 0 alone says it.

    >>> error = UsageError(Setting("batch_size", 0), "must be at least 1; see also ", Setting("seed"))
    >>> str(error)
    'batch_size=0: must be at least 1; see also seed'
    >>> error.words(as_option)
    '--batch-size 0: must be at least 1; see also --seed'
    """

    shared = False

    def __init__(self, *parts: str | Setting) -> None:
        super().__init__(*parts)
        self.parts = parts

    @property
    def setting(self) -> Setting | None:
        """What the error is about; None where that is no setting."""
        first = self.parts[0] if self.parts else None
        return first if isinstance(first, Setting) else None

    def words(self, write: Words) -> str:
        """Return the text with every setting as ``write`` has it."""
        texts = [write(part) if isinstance(part, Setting) else part for part in self.parts]
        return f"{texts[0]}: {''.join(texts[1:])}" if self.setting and len(texts) > 1 else "".join(texts)

    def after(self, text: str) -> Self:
        """Return the error with a text before what it says.

        >>> UsageError(Setting("seed", -1), "is too small").after("process 1: ").words(as_option)
        'process 1: --seed -1: is too small'
        """
        first, *rest = self.parts
        return type(self)(text, first, *([": "] if self.setting and rest else []), *rest)

    def __str__(self) -> str:
        """Return the text in the words of the Python interface."""
        return self.words(as_argument)


class UsageError(ReasonedError):
    """A setting or a place that cannot be used: the commands print it in one line and exit with status 2.

    It is no ValueError: tyro catches those of a command's settings and draws a box around them.
    """


class UnknownOption(UsageError):
    """An option that a command has not.

    Args:
        option: Its name, with hyphens.
        *parts: As those of `ReasonedError`.
    """

    def __init__(self, option: str, *parts: str | Setting) -> None:
        super().__init__(*parts)
        self.option = option


class RunFailed(ReasonedError):
    """A run that cannot go on, by no mistake in its settings: the disk is full, the loss is NaN.

    The command prints the message in one line and exits with status 1; what was saved before stays.
    """


class Diverged(RunFailed):
    """A run whose loss or weights are NaN or infinite: it comes there again with the same settings.

    The processes look for it together. What happened is its first part; what to do about it follows.
    """

    shared = True


class Stopped(Exception):
    """A run that a signal ended after it saved where it was; exit status 128 + the signal's number.

    Args:
        number: The signal's.
        message: Where it stopped.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(number, message)
        self.number, self.message = number, message

    def __str__(self) -> str:
        return self.message


def exit_status(error: BaseException) -> int:
    """Return the exit status of a command that an error ends."""
    if isinstance(error, Stopped):
        return 128 + error.number
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 2 if isinstance(error, UsageError) else 1


def as_argument(setting: Setting) -> str:
    """Return a setting as Python writes it: ``batch_size=0``."""
    if setting.value is NOT_GIVEN:
        return setting.name
    return f"{setting.name}={None if setting.value is None else written(setting.value, ', ')}"


def as_option(setting: Setting) -> str:
    """Return a setting as the command line writes it: ``--batch-size 0``, ``--no-compile``."""
    name = setting.name.replace("_", "-")
    if isinstance(setting.value, bool):
        return f"--{name}" if setting.value else f"--no-{name}"
    option = f"--{name}"
    return option if setting.value is NOT_GIVEN else f"{option} {written(setting.value)}".rstrip()


def written(value: object, separator: str = " ") -> str:
    """Return a value as users write it.

    >>> written(None), written((30, 60)), written(0.5)
    ('none', '30 60', '0.5')
    """
    if value is None:
        return "none"
    return separator.join(map(str, value)) if isinstance(value, list | tuple) else str(value)


ALIKE = {"lr": "learning-rate", "wd": "weight-decay", "workers": "jobs", "jobs": "workers", "gpus": "devices"} | {
    "device": "accelerator", "dataset": "data", "method": "norm", "methods": "norms", "output": "out", "gpu": "cuda",
    "fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16",
    "batchnorm": "bn", "instancenorm": "in", "groupnorm": "gn", "layernorm": "ln"
}  # fmt: skip
"""What people type for some options and values, here or in other programs."""


def near(option: str, known: Iterable[str]) -> str:
    """Return, for the end of a sentence, which of the known options may be meant by one that is not known.

    >>> near("--batchsize", ["--batch-size", "--norms"]), near("--workers", ["--jobs", "--norms"]), near("--x", ["--y"])
    ('; did you mean --batch-size?', '; did you mean --jobs?', '')
    """
    word, names = option.strip("-"), [name.strip("-") for name in known]
    found = [ALIKE[word]] if ALIKE.get(word) in names else difflib.get_close_matches(word, names, 1, 0.75)
    found = found or [name for name in names if len(word) > 2 and word in name]
    return f"; did you mean --{found[0]}?" if found else ""


@contextmanager
def called(**names: str) -> Iterator[None]:
    """Call the setting that an error of this block is about by another name, such as ``called(data="mix")``.

    Raises:
        ReasonedError: The block's own.
    """
    try:
        yield
    except ReasonedError as error:
        if error.setting is not None and error.setting.name in names:
            renamed = error.setting._replace(name=names[error.setting.name])
            error.parts = error.args = (renamed, *error.parts[1:])
        raise
