"""RBN: Gao et al., CVPR 2021, Eq. 4, 5, 9 and 12, and the statistics of its Table 3."""

from __future__ import annotations

import torch
from torch import Tensor

from oracles import Pair, Tensors, batch_moments, channels, gamma_beta, planes, standardize


def statistic(x: Tensor, name: str) -> Tensor:
    """mu_c and sigma_c over a plane (Eq. 4), mu_s and sigma_s over the channels at a pixel."""
    dims = (1,) if name.startswith("spatial_") else planes(x)
    mean = x.mean(dims, keepdim=True) if dims else x
    if name.endswith("mean"):
        return mean
    return torch.sqrt(((x - mean) ** 2).mean(dims, keepdim=True))


def restrict_(z: Tensor, name: str) -> Tensor:
    """R of Eq. 9: the paper's sigmoid, and the other bounded functions on offer."""
    if name == "sigmoid":
        return 1 / (1 + torch.exp(-z))
    if name == "tanh":
        return (torch.exp(z) - torch.exp(-z)) / (torch.exp(z) + torch.exp(-z))
    if name == "hardsigmoid":
        return (z / 6 + 0.5).clamp(0, 1)
    return z / (1 + z.abs())


def rbn(
    x: Tensor,
    p: Tensors,
    statistics: Pair | None = None,
    *,
    eps: float = 1e-5,
    noise: tuple[float, float] | None = None,
    center_stat: str = "mean",
    scale_stat: str = "mean",
    restrict: str = "sigmoid",
) -> tuple[Tensor, Pair]:
    """Eq. 12, line by line; a calibration without tensors is left out (Table 2)."""
    x_cm = x
    if "center_weight" in p:
        x_cm = x + channels(p["center_weight"], x) * statistic(x, center_stat)
    used = batch_moments(x_cm) if statistics is None else statistics
    x_s = standardize(x_cm, used, eps, noise)
    x_cs = x_s
    if "scale_weight" in p:
        k_s = statistic(x_s, scale_stat)
        x_cs = x_s * restrict_(channels(p["scale_weight"], x) * k_s + channels(p["scale_bias"], x), restrict)
    gamma, beta = gamma_beta(p, x)
    return x_cs * gamma + beta, used
