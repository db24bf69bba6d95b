"""SN (Luo et al., ICLR 2019, Eq. 3 to 5), pixel by pixel."""

from __future__ import annotations

import torch
from torch import Tensor

from oracles import Pair, Tensors, batch_moments, channels, gamma_beta, planes


def sn(x: Tensor, p: Tensors, statistics: Pair | None, eps: float) -> Tensor:
    """Mix the moments of IN, LN and BN by the softmax of lambda."""
    means, variances = [], []
    for dims in (planes(x), (1, *planes(x))):
        mean = x.mean(dims, keepdim=True)
        means.append(mean)
        variances.append(((x - mean) ** 2).mean(dims, keepdim=True))
    mean, var = batch_moments(x) if statistics is None else statistics
    means.append(channels(mean, x))
    variances.append(channels(var, x))
    w, u = (torch.exp(p[k]) / torch.exp(p[k]).sum() for k in ("mean_weight", "var_weight"))
    mean = w[0] * means[0] + w[1] * means[1] + w[2] * means[2]
    var = u[0] * variances[0] + u[1] * variances[1] + u[2] * variances[2]
    gamma, beta = gamma_beta(p, x)
    return gamma * (x - mean) / torch.sqrt(var + eps) + beta
