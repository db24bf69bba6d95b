"""What is registered for one test, taken back after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from calibnorm.methods import METHODS
from calibnorm.nn import LAYERS, registered


@contextmanager
def taken_back() -> Iterator[None]:
    """Take back what is registered inside: the methods, their layers, and the classes of these."""
    spaces = (METHODS, LAYERS, vars(registered))
    before = [dict(space) for space in spaces]
    yield
    for space, kept in zip(spaces, before, strict=True):
        for name in [name for name in space if name not in kept]:
            del space[name]
