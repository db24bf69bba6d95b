"""Batch normalization: Ioffe and Szegedy 2015, Algorithm 1; the RBN paper's Eq. 1."""

from __future__ import annotations

from torch import Tensor

from oracles import Pair, Tensors, batch_moments, gamma_beta, standardize


def bn(
    x: Tensor,
    p: Tensors,
    statistics: Pair | None = None,
    *,
    eps: float = 1e-5,
    noise: tuple[float, float] | None = None,
) -> tuple[Tensor, Pair]:
    """Y = X^ * gamma + beta."""
    used = batch_moments(x) if statistics is None else statistics
    gamma, beta = gamma_beta(p, x)
    return standardize(x, used, eps, noise) * gamma + beta, used
