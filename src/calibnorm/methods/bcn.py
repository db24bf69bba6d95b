"""Batch-Channel Normalization (Qiao et al., arXiv 1903.10520 and 1911.09738)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from calibnorm import _checks
from calibnorm.methods.base import Batch, Instance, Method, Parameter, Params, inverse_std
from calibnorm.methods.group import check_groups, group_moments, groups_of, in_groups


@dataclass(frozen=True)
class BCN(Method):
    """``z = gamma * (x - mu) / sqrt(var + eps) + beta``, ``y = gamma_c * (z - mean_g) / sqrt(var_g + eps) + beta_c``.

    A batch normalization with its affine map, then a channel (group) normalization of its output, whose moments follow
    from those of x: ``mean z = gamma * (m - mu) / sd + beta`` and ``var z = (gamma / sd)^2 * v``.

    Channels share gamma_c and beta_c in groups, as in the code that the authors publish for it; the paper can be read
    as one a channel too. For tiny batches that code uses moving averages in the batch step already in training; here
    it is the batch's own, as in their code otherwise. The noise attack enters after the batch step's standardization.
    """

    name: ClassVar[str] = "bcn"
    groups: int | None = None
    per_channel: bool = False

    def __post_init__(self) -> None:
        check_groups(self.groups)
        _checks.flag("per_channel", self.per_channel)

    @property
    def divisor(self) -> int:
        """Return the number of groups, if given."""
        return self.groups or 1

    def own_values(self, channels: int, pixels: int) -> int:
        """Return the values of a group of the channel step."""
        return channels // groups_of(self.groups, channels) * pixels

    def parameters(self, num_features: int) -> dict[str, Parameter]:
        """Return gamma_c and beta_c."""
        size = num_features if self.per_channel else groups_of(self.groups, num_features)
        return {"channel_weight": Parameter((size,), fill=1.0), "channel_bias": Parameter((size,), fill=0.0)}

    def coefficients(self, x: Instance, batch: Batch, p: Params) -> tuple[Tensor, Tensor]:
        """Return the coefficients of both affine maps, one after the other."""
        a, b = super().coefficients(x, batch, p)
        groups = groups_of(self.groups, b.shape[1])
        mean, var = group_moments(b, a.square() * x.V, groups)
        c = inverse_std(var, batch.eps)
        weight, bias = (p[name].view(groups, -1) for name in ("channel_weight", "channel_bias"))
        scale = weight * c * in_groups(a.expand_as(b), groups)
        shift = weight * c * (in_groups(b, groups) - mean) + bias
        return scale.reshape(b.shape), shift.reshape(b.shape)
