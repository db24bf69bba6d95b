"""What the files of torch.save in a run's folder hold, looked at before anybody uses it.

A digest tells whether a file is what was written, and nothing of who wrote it. Every reader comes through here: who
goes on from a checkpoint, and who tests a network.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from calibnorm.errors import UsageError
from calibnorm.lab.training.clock import Timing

LARGEST = 2**53
"""No run has so many epochs, steps or images; floats count exactly up to here."""


class Part(NamedTuple):
    """A part of a file: whether a value can be it, and what it is in words."""

    fits: Callable[[Any], bool]
    words: str


def count(value: object) -> bool:
    """Return whether a value is a whole number from 0, and True is none."""
    return type(value) is int and 0 <= value < LARGEST


def number(value: object) -> bool:
    """Return whether a value is a number, which may be NaN; JSON has no other for what is not known."""
    return type(value) in (int, float)


def finite(value: Any) -> bool:
    """Return whether a value is a finite number from 0."""
    return number(value) and math.isfinite(value) and value >= 0


def numbers(value: object) -> bool:
    """Return whether a value is a mapping of names to numbers."""
    return isinstance(value, dict) and all(isinstance(name, str) and number(each) for name, each in value.items())


def tensors(value: object) -> bool:
    """Return whether a value is a mapping of names to tensors of finite numbers, as a network's state is."""
    return isinstance(value, dict) and all(isinstance(name, str) and usable(each) for name, each in value.items())


def usable(value: object) -> bool:
    """Return whether a value is a plain tensor of finite numbers."""
    return isinstance(value, Tensor) and value.layout is torch.strided and bool(value.isfinite().all())


def momenta(value: Any) -> bool:
    """Return whether a value is an optimizer's state: settings by group, and finite tensors or numbers by parameter."""
    if not isinstance(value, dict) or not isinstance(value.get("state"), dict):
        return False
    groups = value.get("param_groups")
    if not isinstance(groups, list) or not all(
        isinstance(of, dict) and isinstance(of.get("params"), list) for of in groups
    ):
        return False
    own = value["state"].values()
    return all(isinstance(of, dict) and all(_held(each) for each in of.values()) for of in own)


def _held(value: object) -> bool:
    return usable(value) or not isinstance(value, Tensor)


def mean(value: Any) -> bool:
    """Return whether a value is the average of a network's weights, or none."""
    return value is None or (isinstance(value, dict) and count(value.get("updates")) and tensors(value.get("network")))


def progress(value: Any) -> bool:
    """Return whether a value says where a run is: as many rows as epochs are done, each with its number and figures."""
    if not isinstance(value, dict) or not count(value.get("epoch")) or not count(value.get("step")):
        return False
    rows, timings = value.get("rows"), value.get("timings")
    timed = {field.name for field in fields(Timing)}
    return (
        isinstance(rows, list)
        and all(numbers(row) and {"epoch", "learning_rate"} <= row.keys() for row in rows)
        and [row["epoch"] for row in rows] == list(range(1, value["epoch"] + 1))
        and isinstance(timings, list)
        and all(numbers(each) and each.keys() == timed for each in timings)
    )


def place(value: Any) -> bool:
    """Return whether a value says which batch of an epoch comes next, or none, where the epoch has not begun."""
    return value is None or (isinstance(value, dict) and count(value.get("epoch")) and count(value.get("next_batch")))


def sums(value: Any) -> bool:
    """Return whether a value is what was counted in an epoch's batches."""
    return number(value) or (isinstance(value, list) and all(map(number, value)))


CHECKPOINT = {
    "network": Part(tensors, "named tensors of finite numbers"),
    "optimizer": Part(momenta, "the state of an optimizer"),
    "scaler": Part(lambda value: isinstance(value, dict), "a mapping"),
    "average": Part(mean, "named tensors of finite numbers with a count of updates, or none"),
    "progress": Part(progress, "an epoch, a step, and a row of figures for each epoch that is done"),
    "seconds": Part(finite, "a number from 0"),
    "feed": Part(place, "the next batch of an epoch, or none"),
    "sums": Part(sums, "numbers"),
}
"""What a run goes on from; other parts than these may be there, too."""

WEIGHTS = {
    "network": CHECKPOINT["network"],
    "epoch": Part(lambda value: count(value) and value > 0, "a whole number from 1"),
}
"""What people read of `best.pt` and `last.pt`."""


def read(path: Path, data: bytes, parts: Mapping[str, Part], remedy: str) -> dict[str, Any]:
    """Return what a file of torch.save holds.

    Args:
        path: The file, for the error.
        data: Its bytes; nothing of them is run.
        parts: What has to be in it.
        remedy: What to do where it is something else.

    Raises:
        UsageError: It is no such file, or holds something else.
    """
    none = f"{path}: is damaged, or no checkpoint of calibnorm"
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # of torch's many readers, each has errors of its own
        reason = "it is cut off, or holds more than tensors, numbers and texts; nothing of it was run"
        raise UsageError(f"{none}: {reason}; {remedy}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{none}, as it holds a {type(content).__name__}; {remedy}")
    for name, part in parts.items():
        wrong = f"{name} is missing" if name not in content else f"{name} is not {part.words}"
        if name not in content or not part.fits(content[name]):
            raise UsageError(f"{none}: {wrong}; {remedy}")
    return content


@contextmanager
def refused(path: Path, reason: str, remedy: str) -> Iterator[None]:
    """Raise UsageError in place of whatever torch raises for content that is not what it should be.

    Raises:
        UsageError: An error of the block.
    """
    try:
        yield
    except Exception as error:  # of torch's many parts, each has errors of its own
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        why = next((line for line in lines if not line.endswith(":")), lines[0])  # torch puts a title above
        raise UsageError(f"{path}: {reason} ({why.rstrip('.')[:200]}); {remedy}") from error
