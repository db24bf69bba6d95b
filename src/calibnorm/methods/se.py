"""Squeeze-and-Excitation (Hu et al., CVPR 2018, arXiv 1709.01507): alone, and after batch normalization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from calibnorm import _checks
from calibnorm._checks import Noise
from calibnorm.methods.base import Batch, Instance, Method, Parameter, Params, reparameterize
from calibnorm.methods.bottleneck import bottleneck, bottleneck_parameters, check_reduction


@dataclass(frozen=True)
class SE(Method):
    """``y = d * z``, ``d = sigmoid(W2 relu(W1 mean(z) + b1) + b2)`` (Eq. 2 to 4); z is x, or the output of BN.

    After BN the squeeze costs no read: the mean of the plane of z is ``gamma * (m - mu) / sd + beta``.

    The paper's Eq. 3 has no biases. They are the default because the IEBN paper's SE-ResNet-50 has them: its 28.09 M
    parameters are 28.088 M with biases and 28.072 M without. That paper's SE-ResNeXt-29 and SE-PreResNet-164 have none.
    The paper does not say how the layers start; as in ``nn.Linear`` here, and so the gate of a new layer is about 1/2.
    """

    name: ClassVar[str] = "se"
    last_of_branch = True  # the paper's SE-ResNet has one SE block a residual branch (Fig. 3)
    alone: bool = False
    reduction: int = 16
    biases: bool = True

    def __post_init__(self) -> None:
        _checks.flag("alone", self.alone)
        check_reduction(self.reduction)
        _checks.flag("biases", self.biases)

    @property
    def normalizes(self) -> bool:
        """Whether BN comes first."""
        return not self.alone

    @property
    def batch_statistics(self) -> bool:
        """Whether BN comes first."""
        return not self.alone

    @property
    def gated(self) -> tuple[str, ...]:
        """After BN the gate multiplies all of its output."""
        return () if self.alone else ("weight", "bias")

    def parameters(self, num_features: int) -> dict[str, Parameter]:
        """Return the two fully connected layers."""
        return bottleneck_parameters(num_features, self.reduction, decays=True, biases=self.biases)

    def gate(self, z_NC: Tensor, p: Params) -> Tensor:
        """Return d, (N, C), from the means of the planes of z."""
        return torch.sigmoid(bottleneck(z_NC, p))

    def standardize(self, x: Instance, batch: Batch, p: Params) -> tuple[Tensor, Tensor]:
        """Return BN's coefficients; alone those that leave the input as it is."""
        return (torch.ones_like(x.m), x.M) if self.alone else super().standardize(x, batch, p)

    def calibration(self, x: Instance, a: Tensor, b: Tensor, p: Params) -> Tensor:
        """Return d, from the means of the planes of z."""
        return self.gate(reparameterize(a, b, p.get("weight"), p.get("bias"))[1], p)

    def coefficients(self, x: Instance, batch: Batch, p: Params) -> tuple[Tensor, Tensor]:
        """Return d and d * m, or d * gamma / sd and d * (gamma * (m - mu) / sd + beta)."""
        a, b = reparameterize(*self.standardize(x, batch, p), p.get("weight"), p.get("bias"))
        d = self.gate(b, p)
        return d * a, d * b

    def mean_gate(self, p: Params, running_mean: Tensor, noise: Noise = (1.0, 0.0)) -> tuple[Tensor, Tensor]:
        """Return the gate of an average input: alone with m = the running mean, after BN with z = gamma N_b + beta."""
        z = running_mean
        if not self.alone:
            z = p.get("weight", torch.ones_like(z)) * noise[1] + p.get("bias", torch.zeros_like(z))
        return self.gate(z[None], p)[0], running_mean
