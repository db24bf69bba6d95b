"""The functions that turn a linear form into a gate, by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def _softmax(z: Tensor) -> Tensor:
    """Softmax over channels (dimension 1 of (N, C), the last of (C,))."""
    return torch.softmax(z, dim=-1)


def _hardsigmoid(z: Tensor) -> Tensor:
    """``clamp(z / 6 + 1/2, 0, 1)``; the gradient of torch's own has a 1/6 rounded to float32, 3e-8 off in float64."""
    return (z / 6.0 + 0.5).clamp(0.0, 1.0)


GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "softmax": _softmax,
}
"""IEBN's activations (Fig. 4 of the paper)."""

RESTRICTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "hardsigmoid": _hardsigmoid,
    "softsign": torch.nn.functional.softsign,
}
"""RBN's restrict function R (Eq. 9): the paper uses the sigmoid and leaves the others open; these are bounded."""
