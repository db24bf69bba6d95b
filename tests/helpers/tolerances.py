"""Every tolerance of the tests, and why it is what it is.

Rounding of a float is at most eps / 2 of its size. A sum of n values, however it is ordered, is off by at most
n * eps / 2 of the sum of their sizes; torch adds pairwise or in blocks, which behaves like sqrt(n) or better.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ORACLE = 1e-9
"""Largest error against a float64 oracle, relative to the largest value: the promise of the project.

Float64 rounding over the few hundred values of these tests is 1e-13; 1e-9 leaves room for a small variance that
divides, and none for a wrong formula.
"""

COMPILED = 1e-5
"""Compiled against eager in float32 (docs/reliability.md, compilation and export)."""


def reduction(dtype: torch.dtype, count: int, slack: float = 8.0) -> float:
    """Relative error of a result that went through a reduction of ``count`` values in ``dtype``.

    sqrt(count) roundings of the sum; ``slack`` counts the handful of further operations on the way to the output.
    """
    return slack * torch.finfo(dtype).eps * math.sqrt(count)


def rounding(dtype: torch.dtype, operations: int = 8) -> float:
    """Relative error of ``operations`` roundings in ``dtype`` without a reduction."""
    return operations * torch.finfo(dtype).eps


def error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected value, or to 1 where all of them are smaller."""
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} instead of {tuple(expected.shape)}"
    if expected.numel() == 0:
        return 0.0
    expected = expected.detach().double()
    difference = (actual.detach().double() - expected).abs().max().item()
    assert not math.isnan(difference), "NaN where the other side has a number, or on both"
    return difference / max(expected.abs().max().item(), 1.0)
