"""IEBN and RBN around any standardization, pixel by pixel: the papers' equations with another X^."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from oracles import Tensors, batch_moments, channels, gamma_beta, planes, standardize

Standardization = Callable[[Tensor], Tensor]


def rbn_centering(x: Tensor, p: Tensors) -> Tensor:
    """RBN's Eq. 5 alone, then plain standardization by the batch."""
    x_cm = x + channels(p["center_weight"], x) * x.mean(planes(x), keepdim=True)
    return standardize(x_cm, batch_moments(x_cm), 1e-3, None)


def rbn_over(x: Tensor, p: Tensors, base: Standardization) -> Tensor:
    """RBN's Eq. 12 with ``base`` in its second line."""
    x_s = base(x + channels(p["center_weight"], x) * x.mean(planes(x), keepdim=True))
    z = channels(p["scale_weight"], x) * x_s.mean(planes(x), keepdim=True) + channels(p["scale_bias"], x)
    gamma, beta = gamma_beta(p, x)
    return gamma * x_s / (1 + torch.exp(-z)) + beta


def iebn_over(x: Tensor, p: Tensors, base: Standardization, position: str) -> Tensor:
    """IEBN's Algorithm 1 with ``base`` for its X^; the gate multiplies gamma or beta."""
    z = channels(p["gate_weight"], x) * x.mean(planes(x), keepdim=True) + channels(p["gate_bias"], x)
    delta = 1 / (1 + torch.exp(-z))
    gamma, beta = gamma_beta(p, x)
    return base(x) * gamma * delta + beta if position == "gamma" else base(x) * gamma + beta * delta
