"""AN: Li, Sun and Wu, ECCV 2020, over batch normalization, pixel by pixel."""

from __future__ import annotations

import torch
from torch import Tensor

from oracles import Pair, Tensors, planes
from oracles.bn import bn


def logits(x: Tensor, p: Tensors, squeeze: str) -> Tensor:
    """W s, (N, K)."""
    mean = x.mean(planes(x))
    var = (x**2).mean(planes(x)) - mean**2
    s = mean / torch.sqrt(var + 1e-3) if squeeze == "rsd" else mean
    return torch.stack([(s * row).sum(1) for row in p["attention_fc"]], 1)


def an(
    x: Tensor, p: Tensors, statistics: Pair | None, eps: float, squeeze: str, attention: Pair | None = None
) -> Tensor:
    """Squeeze, attend, and mix the K affine maps instance by instance."""
    z = logits(x, p, squeeze)
    mu, sigma2 = (z.mean(0), ((z - z.mean(0)) ** 2).mean(0)) if attention is None else attention
    z = (z - mu) / torch.sqrt(sigma2 + 1e-5) * p["attention_weight"] + p["attention_bias"]
    lam = (z / 6 + 0.5).clamp(0, 1)
    x_hat, _ = bn(x, {name: p[name] for name in ("weight", "bias") if name in p}, statistics, eps=eps)
    maps = []
    for n in range(len(x)):
        weight = sum(lam[n, k] * p["mixture_weight"][k] for k in range(lam.shape[1]))
        bias = sum(lam[n, k] * p["mixture_bias"][k] for k in range(lam.shape[1]))
        one = [-1, *[1] * (x.ndim - 2)]
        maps.append(x_hat[n] * weight.view(one) + bias.view(one))
    return torch.stack(maps)
