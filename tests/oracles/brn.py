"""Batch Renormalization (Ioffe 2017, Algorithm 1), pixel by pixel; the running variance takes the place of sd^2."""

from __future__ import annotations

import torch
from torch import Tensor

from oracles import Tensors, batch_moments, channels, gamma_beta


def brn(x: Tensor, p: Tensors, r_max: float, d_max: float, eps: float, noise: tuple[float, float] | None) -> Tensor:
    """Y = gamma * ((X - mu_B) / sd_B * r + d) + beta, no gradient through r and d."""
    mean, var = batch_moments(x)
    sd_b, sd = torch.sqrt(var + eps), torch.sqrt(p["running_var"] + eps)
    with torch.no_grad():
        r = (sd_b / sd).clamp(1 / r_max, r_max)
        d = ((mean - p["running_mean"]) / sd).clamp(-d_max, d_max)
    x_hat = (x - channels(mean, x)) / channels(sd_b, x) * channels(r, x) + channels(d, x)
    if noise is not None:
        x_hat = x_hat * noise[0] + noise[1]
    gamma, beta = gamma_beta(p, x)
    return gamma * x_hat + beta
