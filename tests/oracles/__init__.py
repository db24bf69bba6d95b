"""The papers' equations, pixel by pixel in float64, written from the papers and from nothing in src.

Every oracle takes x (N, C, *spatial), the tensors by the library's names, and the statistics to use; it returns y and
the mean and biased variance over the batch of the feature that is standardized.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
Pair = tuple[Tensor, Tensor]


def channels(t: Tensor, x: Tensor) -> Tensor:
    """View (C,) as (1, C, 1, ...)."""
    return t.view(1, -1, *[1] * (x.ndim - 2))


def planes(x: Tensor) -> tuple[int, ...]:
    """Dimensions of one plane: the spatial ones."""
    return tuple(range(2, x.ndim))


def batch_moments(x: Tensor) -> Pair:
    """Mean and biased variance of every channel over the batch and its pixels."""
    dims = (0, *planes(x))
    mean = x.mean(dims)
    return mean, ((x - channels(mean, x)) ** 2).mean(dims)


def standardize(x: Tensor, statistics: Pair, eps: float, noise: tuple[float, float] | None) -> Tensor:
    """X^ = (X - mu) / sqrt(var + eps); under the constant noise attack X^ * N_a + N_b (IEBN paper, v1 Eq. 9)."""
    mean, var = (channels(t, x) for t in statistics)
    x_hat = (x - mean) / torch.sqrt(var + eps)
    return x_hat if noise is None else x_hat * noise[0] + noise[1]


def gamma_beta(p: Tensors, x: Tensor) -> Pair:
    """gamma and beta, (1, C, 1, ...); 1 and 0 where the layer has none."""
    one = x.new_ones(x.shape[1])
    return channels(p.get("weight", one), x), channels(p.get("bias", 0 * one), x)


@dataclass
class Running:
    """Running statistics as torch documents them: unbiased variance; momentum None is the average over batches."""

    mean: Tensor
    var: Tensor
    momentum: float | None
    batches: int = 0

    def update(self, statistics: Pair, values: int) -> None:
        """Count one batch of ``values`` values a channel."""
        self.batches += 1
        weight = 1 / self.batches if self.momentum is None else self.momentum
        mean, var = (t.detach() for t in statistics)
        self.mean = (1 - weight) * self.mean + weight * mean
        self.var = (1 - weight) * self.var + weight * var * values / (values - 1)
