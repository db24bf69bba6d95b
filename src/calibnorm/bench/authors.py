"""The papers' layers as their equations say, in plain torch operations: what calibnorm's are compared with.

Written from the papers, no code of the authors in it. They stand for the usual way to write such a layer: torch's own
batch normalization without affine parameters, pooling, and pointwise operations. Gate and gamma are multiplied before
they touch a pixel, and every operation on pixels stays in the input's dtype: a baseline at its best.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class AuthorsNorm(nn.Module):
    """What both share: gamma, beta and running statistics; parameters have shape (1, C, 1, 1)."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = self._parameter(num_features, 1.0)
        self.bias = self._parameter(num_features, 0.0)
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    @staticmethod
    def _parameter(num_features: int, value: float) -> nn.Parameter:
        return nn.Parameter(torch.full((1, num_features, 1, 1), value))

    def _standardize(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, None, None, self.training, self.momentum, self.eps)

    def _scale_and_shift(self, x: Tensor, gate: Tensor) -> Tensor:
        return x * (self.weight * gate).to(x.dtype) + self.bias.to(x.dtype)


class AuthorsIEBN(AuthorsNorm):
    """IEBN (Liang et al., AAAI 2020): Y = X^ * (gamma * delta) + beta, delta = sigmoid(g_hat * AVG(X) + b_hat)."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.gate_weight = self._parameter(num_features, 0.0)
        self.gate_bias = self._parameter(num_features, -1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x, (N, C, H, W)."""
        gate = torch.sigmoid(self.gate_weight * F.adaptive_avg_pool2d(x, 1) + self.gate_bias)
        return self._scale_and_shift(self._standardize(x), gate)


class AuthorsRBN(AuthorsNorm):
    """RBN (Gao et al., CVPR 2021, Eq. 12), K_m and K_s the means of the planes.

    X_cm = X + w_m * K_m, X_s = standardized X_cm, Y = X_s * sigmoid(w_v * K_s + w_b) * gamma + beta.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.center_weight = self._parameter(num_features, 0.0)
        self.scale_weight = self._parameter(num_features, 0.0)
        self.scale_bias = self._parameter(num_features, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x, (N, C, H, W)."""
        centred = x + (self.center_weight * F.adaptive_avg_pool2d(x, 1)).to(x.dtype)
        standardized = self._standardize(centred)
        gate = torch.sigmoid(self.scale_weight * F.adaptive_avg_pool2d(standardized, 1) + self.scale_bias)
        return self._scale_and_shift(standardized, gate)
