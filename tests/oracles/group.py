"""GN (Wu and He 2018, Eq. 1, 2, 6 and 7); IN has C groups, LN one."""

from __future__ import annotations

import torch
from torch import Tensor

from oracles import Tensors, gamma_beta


def gn(x: Tensor, p: Tensors, groups: int, eps: float) -> Tensor:
    """Standardize every group of channels of every instance, pixel by pixel."""
    flat = x.reshape(x.shape[0], groups, -1)
    mean = flat.mean(-1, keepdim=True)
    var = ((flat - mean) ** 2).mean(-1, keepdim=True)
    gamma, beta = gamma_beta(p, x)
    return ((flat - mean) / torch.sqrt(var + eps)).reshape(x.shape) * gamma + beta
