"""Tensors of a program: in memory, for any number of instances."""

from __future__ import annotations

from typing import NamedTuple


class Number(NamedTuple):
    """``value * N ** power``."""

    value: float
    power: int = 0


class Where(NamedTuple):
    """A tensor in memory for any number of instances: size and stride of each dimension, the size of instances None."""

    memory: int
    offset: int
    dims: tuple[tuple[int | None, int], ...]
