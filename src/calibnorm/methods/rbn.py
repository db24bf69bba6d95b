"""Representative Batch Normalization (Gao et al., CVPR 2021)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from calibnorm import _checks
from calibnorm._checks import Noise
from calibnorm.methods.activations import RESTRICTIONS
from calibnorm.methods.base import Instance, Method, Parameter, Params, safe_sqrt

STATISTICS = ("mean", "std", "spatial_mean", "spatial_std")


@dataclass(frozen=True)
class RBN(Method):
    """Centering and scaling calibration around batch normalization (Eq. 12).

    ``X_cm = X + w_m * K_m``, ``X_s = (X_cm - E(X_cm)) / sqrt(Var(X_cm) + eps)``,
    ``X_cs = X_s * R(w_v * K_s + w_b)``, ``y = gamma * X_cs + beta``.

    The running statistics are those of X_cm. K_m is a statistic of X and K_s one of X_s (after the noise attack, if
    any), by default both the plane's mean; standard deviations are biased, without eps. The paper's R is the sigmoid.
    """

    name: ClassVar[str] = "rbn"

    centering: bool = True
    scaling: bool = True
    center_stat: str = "mean"
    scale_stat: str = "mean"
    restrict: str = "sigmoid"
    init: tuple[float, float, float] = (0.0, 0.0, 1.0)

    def __post_init__(self) -> None:
        _checks.flag("centering", self.centering)
        _checks.flag("scaling", self.scaling)
        _checks.choice("center_stat", self.center_stat, STATISTICS)
        _checks.choice("scale_stat", self.scale_stat, STATISTICS)
        _checks.choice("restrict", self.restrict, RESTRICTIONS)
        object.__setattr__(self, "init", _checks.reals("init", self.init, 3))

    @property
    def spatial_center(self) -> bool:
        """Whether K_m is a statistic over channels, which no per-channel coefficient can express."""
        return self.centering and self.center_stat.startswith("spatial")

    @property
    def spatial_scale(self) -> bool:
        """Whether K_s is a statistic over channels."""
        return self.scaling and self.scale_stat.startswith("spatial")

    @property
    def spatial(self) -> tuple[str, ...]:
        """Return w_m where K_m, and all that follows the standardization where K_s is a statistic over channels."""
        center = ("center_weight",) if self.spatial_center else ()
        return (*center, "scale_weight", "scale_bias", "weight", "bias") if self.spatial_scale else center

    def before_steps(self, x: Tensor, p: Params) -> Tensor:
        """Return X_cm where K_m is a statistic over channels."""
        return x + p["center_weight"] * _over_channels(x, self.center_stat) if self.spatial_center else x

    def after_steps(self, y: Tensor, p: Params) -> Tensor:
        """Return gamma * X_cs + beta where K_s is a statistic over channels."""
        if self.spatial_scale:
            k_s = _over_channels(y, self.scale_stat)
            y = y * self.gate(k_s, p)
            if "weight" in p:
                y = y * p["weight"]
            if "bias" in p:
                y = y + p["bias"]
        return y

    def without_spatial(self) -> RBN:
        """Return the method without the calibrations that use spatial statistics."""
        return replace(
            self, centering=self.centering and not self.spatial_center, scaling=self.scaling and not self.spatial_scale
        )

    def parameters(self, num_features: int) -> dict[str, Parameter]:
        """Return w_m, w_v and w_b, as far as the calibrations are used."""
        w_m, w_v, w_b = (Parameter((num_features,), fill=value) for value in self.init)
        center = {"center_weight": w_m} if self.centering else {}
        scale = {"scale_weight": w_v, "scale_bias": w_b} if self.scaling else {}
        return center | scale

    def instance_stats(self, m: Tensor, v: Tensor, p: Params) -> tuple[Tensor, Tensor]:
        """Return the mean of X_cm, ``m + w_m * K_m``, and its within-plane variance v."""
        if not self.centering:
            return m, v
        if self.center_stat == "mean":
            return (1.0 + p["center_weight"]) * m, v
        return m + p["center_weight"] * safe_sqrt(v), v

    @property
    def enters_statistics(self) -> tuple[str, ...]:
        """Return w_m where it is used."""
        return ("center_weight",) if self.centering else ()

    def gate(self, k_s: Tensor, p: Params) -> Tensor:
        """Return R(w_v * K_s + w_b)."""
        return self.restricted(p["scale_weight"] * k_s + p["scale_bias"])

    def restricted(self, z: Tensor) -> Tensor:
        """Return R(z)."""
        return RESTRICTIONS[self.restrict](z)

    def calibration(self, x: Instance, a: Tensor, b: Tensor, p: Params) -> Tensor | None:
        """Return g, from the mean b or the standard deviation of the standardized feature."""
        if not self.scaling:
            return None
        return self.gate(b if self.scale_stat == "mean" else safe_sqrt(x.v) * a.abs(), p)

    @property
    def gated(self) -> tuple[str, ...]:
        """Which of ``weight`` and ``bias`` the gate multiplies."""
        return ("weight",) if self.scaling else ()

    def constant_gate(self, p: Params) -> Tensor | None:
        """Return R(w_b) where every w_m and w_v is 0, and 1 where nothing scales."""
        if self.centering and bool(p["center_weight"].detach().any()):
            return None
        if not self.scaling:
            return torch.ones(1)
        if bool(p["scale_weight"].detach().any()):
            return None
        return self.restricted(p["scale_bias"].detach())

    def average_k_s(self, noise: Noise) -> float:
        """Return the K_s of an average standardized feature, of mean 0 and standard deviation 1 before the noise."""
        return noise[1] if self.scale_stat.endswith("mean") else abs(noise[0])

    def mean_gate(self, p: Params, running_mean: Tensor, noise: Noise = (1.0, 0.0)) -> tuple[Tensor, Tensor]:
        """Return the gate at an average K_s, and the running mean with the centering calibration taken out.

        A standardized plane has mean 0 and standard deviation 1 on average, N_b and ``|N_a|`` after noise. The running
        mean is exact for the mean statistic where 1 + w_m is not 0; other statistics leave it as it is.
        """
        gate = torch.ones_like(running_mean)
        if self.scaling:
            gate = self.gate(torch.full_like(running_mean, self.average_k_s(noise)), p)
        if self.centering and self.center_stat == "mean":
            factor = 1.0 + p["center_weight"]
            running_mean = torch.where(factor == 0, running_mean, running_mean / factor)
        return gate, running_mean


def _over_channels(x: Tensor, statistic: str) -> Tensor:
    """Return the mean or the biased standard deviation over channels at every pixel, (N, 1, *spatial)."""
    mean = x.mean(1, keepdim=True)
    if statistic == "spatial_mean":
        return mean
    return safe_sqrt(torch.square(x - mean).mean(1, keepdim=True))
