"""Attentive Normalization (Li, Sun and Wu, ECCV 2020, arXiv 1908.01259)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from calibnorm import _checks
from calibnorm.methods.activations import RESTRICTIONS
from calibnorm.methods.base import Batch, Instance, Method, Parameter, Params, inverse_std, reparameterize

SQUEEZES = ("rsd", "mean")
SQUEEZE_EPS = 1e-3
ATTENTION_EPS = 1e-5


@dataclass(frozen=True)
class AN(Method):
    """``y = x^ * sum_k lambda_k gamma_k + sum_k lambda_k beta_k``: each instance mixes K affine maps of BN's x^.

    ``lambda = hsigmoid(BN(W s))``, with s the mean of every plane, or the mean over ``sqrt(v + 1e-3)``, W (K, C)
    without bias, and BN a plain batch normalization of the K numbers over the instances, whose running statistics a
    layer keeps as ``attention_mean`` and ``attention_var``.

    The K pairs take the place of gamma and beta: where a layer has these too, they come first. gamma_k starts at
    N(1, 0.1), beta_k at N(0, 0.1), deviations, and W as in ``nn.Linear``, all as far as the paper or its public
    implementations say. Those take torch's unbiased variance in the squeeze; v is biased here.
    """

    name: ClassVar[str] = "an"
    mixtures: int = 10
    squeeze: str = "rsd"

    def __post_init__(self) -> None:
        _checks.choice("squeeze", self.squeeze, SQUEEZES)
        if isinstance(self.mixtures, bool) or not isinstance(self.mixtures, int) or self.mixtures < 1:
            raise ValueError(f"mixtures={self.mixtures!r} must be an integer, at least 1")

    def parameters(self, num_features: int) -> dict[str, Parameter]:
        """Return gamma_k, beta_k, W, and gamma and beta of the attention's batch normalization."""
        k = self.mixtures
        return {
            "mixture_weight": Parameter((k, num_features), fill=1.0, std=0.1),
            "mixture_bias": Parameter((k, num_features), fill=0.0, std=0.1),
            "attention_fc": Parameter((k, num_features), fan_in=num_features, decays=True),
            "attention_weight": Parameter((k,), fill=1.0),
            "attention_bias": Parameter((k,), fill=0.0),
        }

    def extra_statistics(self, num_features: int) -> dict[str, int]:
        """Return K: the attention's batch normalization keeps statistics of its own."""
        return {"attention": self.mixtures}

    def logits(self, m: Tensor, v: Tensor, p: Params) -> Tensor:
        """Return W s, (N, K)."""
        s = m * inverse_std(v, SQUEEZE_EPS) if self.squeeze == "rsd" else m
        return s @ p["attention_fc"].t()

    def instance_stats(self, m: Tensor, v: Tensor, p: Params) -> tuple[Tensor, Tensor]:
        """Return m and v with W s behind them, (N, C + K): numbers without a variance of their own."""
        z = self.logits(m, v, p)
        return torch.cat([m, z], 1), torch.cat([v, torch.zeros_like(z)], 1)

    def attention(self, z: Tensor, mean: Tensor, var: Tensor, p: Params) -> Tensor:
        """Return lambda, (N, K), from W s and its statistics over the batch."""
        z = (z - mean) * inverse_std(var, ATTENTION_EPS) * p["attention_weight"] + p["attention_bias"]
        return RESTRICTIONS["hardsigmoid"](z)

    def standardize(self, x: Instance, batch: Batch, p: Params) -> tuple[Tensor, Tensor]:
        """Return those of the C channels, without the attention's."""
        c = x.m.shape[1]
        return batch.standardize_by(x.M[:, :c], batch.mean[..., :c], batch.var[..., :c])

    def coefficients(self, x: Instance, batch: Batch, p: Params) -> tuple[Tensor, Tensor]:
        """Return BN's coefficients, mapped by every instance's mixture."""
        c = x.m.shape[1]
        a, b = reparameterize(*self.standardize(x, batch, p), p.get("weight"), p.get("bias"))
        attention = self.attention(x.M[:, c:], batch.mean[..., c:], batch.var[..., c:], p)
        weight, bias = attention @ p["mixture_weight"], attention @ p["mixture_bias"]
        return weight * a, weight * b + bias
