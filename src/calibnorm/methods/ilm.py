"""Instance-Level Meta Normalization (Jia et al., CVPR 2019, arXiv 1904.03516)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from calibnorm.methods.base import Batch, Instance, Method, Parameter, Params
from calibnorm.methods.bottleneck import check_reduction
from calibnorm.methods.group import check_groups, group_moments, groups_of, standardize_groups


@dataclass(frozen=True)
class ILM(Method):
    """``y = (x - mean_g) / sqrt(var_g + eps) * omega + beta``: an instance predicts its own affine map.

    ``omega = weight + sigmoid(U_1 relu(W var_k))`` and ``beta = bias + tanh(U_2 relu(W mean_k))``, where mean_k and
    var_k are the moments of key groups of channels, and all channels of a key group share one prediction. The learnable
    weight starts at 1 and the bias at 0, one a channel. One encoder W without bias serves both branches, and it has 2
    hidden units or more, as in the authors' code, where the variances are torch's unbiased ones; here they are biased,
    as everywhere in this library, which differs by 1 / (values - 1).
    """

    name: ClassVar[str] = "ilm"
    batch_statistics = False
    groups: int | None = None
    key_size: int | None = None
    reduction: int = 16

    def __post_init__(self) -> None:
        check_groups(self.groups)
        check_groups(self.key_size, "key_size")
        check_reduction(self.reduction)

    @property
    def divisor(self) -> int:
        """Return the least that groups and key_size, if given, both divide."""
        return math.lcm(self.groups or 1, self.key_size or 1)

    def own_values(self, channels: int, pixels: int) -> int:
        """Return the values of a group of the normalization."""
        return channels // groups_of(self.groups, channels) * pixels

    def keys_of(self, channels: int) -> int:
        """Return the number of key groups that this many channels form."""
        size = math.gcd(16, channels) if self.key_size is None else self.key_size
        if channels % size:
            raise ValueError(f"key_size={size} does not divide {channels} channels; pass a divisor, or None")
        return channels // size

    def parameters(self, num_features: int) -> dict[str, Parameter]:
        """Return the encoder and the two decoders, which start as in ``nn.Linear``."""
        keys = self.keys_of(num_features)
        hidden = keys // self.reduction or 2
        return {
            "encoder_weight": Parameter((hidden, keys), fan_in=keys, decays=True),
            "scale_decoder_weight": Parameter((keys, hidden), fan_in=hidden, decays=True),
            "shift_decoder_weight": Parameter((keys, hidden), fan_in=hidden, decays=True),
        }

    def standardize(self, x: Instance, batch: Batch, p: Params) -> tuple[Tensor, Tensor]:
        """Return those of the group's mean and variance."""
        return standardize_groups(x, batch, groups_of(self.groups, x.M.shape[1]))

    def coefficients(self, x: Instance, batch: Batch, p: Params) -> tuple[Tensor, Tensor]:
        """Return omega / sd_g and omega * (m - mean_g) / sd_g + beta."""
        n, c = x.M.shape
        a, b = self.standardize(x, batch, p)
        keys = self.keys_of(c)
        mean, var = (t[:, :, 0] for t in group_moments(x.M, x.V, keys))

        def decode(keys_NK: Tensor, decoder: str) -> Tensor:
            return torch.relu(keys_NK @ p["encoder_weight"].t()) @ p[decoder].t()

        def each_channel(keys_NK: Tensor) -> Tensor:
            return keys_NK[:, :, None].expand(-1, -1, c // keys).reshape(n, c)

        omega = p.get("weight", 1.0) + each_channel(torch.sigmoid(decode(var, "scale_decoder_weight")))
        beta = p.get("bias", 0.0) + each_channel(torch.tanh(decode(mean, "shift_decoder_weight")))
        return omega * a, omega * b + beta
