"""The functions that turn a linear form into a gate, by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def _softmax(z: Tensor) -> Tensor:
    """Softmax over channels (dimension 1 of (N, C), the last of (C,))."""
    return torch.softmax(z, dim=-1)


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
    "hardsigmoid": torch.nn.functional.hardsigmoid,
    "softsign": torch.nn.functional.softsign,
}
"""RBN's restrict function R (Eq. 9): the paper uses the sigmoid and leaves the others open; these are bounded."""
