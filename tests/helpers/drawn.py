"""Random numbers for tests, of generators of their own; without pytest, so that a GPU machine can draw them, too."""

from __future__ import annotations

import torch
from torch import Tensor


def generator(seed: int = 0) -> torch.Generator:
    """A generator of its own, so that no test depends on the tests before it."""
    return torch.Generator().manual_seed(seed)


def randn(
    *shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, mean: float = 0.0, std: float = 1.0
) -> Tensor:
    """Normal values, drawn in float64."""
    return (mean + std * torch.randn(shape, generator=generator(seed), dtype=torch.float64)).to(dtype)
