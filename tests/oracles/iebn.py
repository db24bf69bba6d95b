"""IEBN: Liang et al., arXiv 1908.04008v2, Algorithm 1 and the ablations of its Tables 4 and 5 and Fig. 4."""

from __future__ import annotations

import torch
from torch import Tensor

from oracles import Pair, Tensors, batch_moments, channels, gamma_beta, planes, standardize


def activate(z: Tensor, activation: str) -> Tensor:
    """Fig. 4: sigmoid, tanh, ReLU, softmax over the channels, each from its definition."""
    if activation == "sigmoid":
        return 1 / (1 + torch.exp(-z))
    if activation == "tanh":
        return (torch.exp(z) - torch.exp(-z)) / (torch.exp(z) + torch.exp(-z))
    if activation == "relu":
        return z.clamp(min=0)
    return torch.exp(z) / torch.exp(z).sum(1, keepdim=True)


def iebn(
    x: Tensor,
    p: Tensors,
    statistics: Pair | None = None,
    *,
    eps: float = 1e-5,
    noise: tuple[float, float] | None = None,
    operator: str = "linear",
    position: str = "gamma",
    activation: str = "sigmoid",
    gate_input: str = "mean",
) -> tuple[Tensor, Pair]:
    """Y = X^ * (gamma * delta) + beta, delta = sigmoid(AVG(X) * gamma^ + beta^), of X^ with standardized input."""
    used = batch_moments(x) if statistics is None else statistics
    source = x if gate_input == "mean" else standardize(x, used, eps, noise)
    average = source.mean(planes(x), keepdim=True) if x.ndim > 2 else source
    if operator == "linear":
        weight = p["standardized_gate_weight"] if "standardized_gate_weight" in p else p["gate_weight"]
        z = average * channels(weight, x) + channels(p["gate_bias"], x)
    elif operator == "identity":
        z = average
    else:
        squeezed = average.flatten(1)
        hidden = (squeezed @ p["fc1_weight"].T + p["fc1_bias"]).clamp(min=0)
        z = (hidden @ p["fc2_weight"].T + p["fc2_bias"]).view_as(average)
    delta = activate(z, activation)
    gamma, beta = gamma_beta(p, x)
    if position in ("gamma", "both"):
        gamma = gamma * delta
    if position in ("beta", "both"):
        beta = beta * delta
    return standardize(x, used, eps, noise) * gamma + beta, used
