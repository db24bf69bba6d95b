"""Group, Layer and Instance Normalization: statistics of one instance, over groups of its channels."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from calibnorm.methods.base import Batch, Instance, Method, Params


def group_moments(m: Tensor, v: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of every group of channels, (N, G, 1).

    With planes of one size, ``mean = mean_c m`` and ``var = mean_c v + mean_c (m - mean)^2``.
    """
    m_NGc, v_NGc = in_groups(m, groups), in_groups(v, groups)
    mean = m_NGc.mean(-1, keepdim=True)
    return mean, (v_NGc + (m_NGc - mean).square()).mean(-1, keepdim=True)


def in_groups(t_NC: Tensor, groups: int) -> Tensor:
    """View (N, C) as (N, G, C / G)."""
    n, c = t_NC.shape
    return t_NC.view(n, groups, c // groups)  # n may be 0, so no -1


def standardize_groups(x: Instance, batch: Batch, groups: int) -> tuple[Tensor, Tensor]:
    """Return 1 / sd_g and (M - mean_g) / sd_g, with no statistic of the batch, (N, C)."""
    a, b = batch.standardize_by(in_groups(x.M, groups), *group_moments(x.M, x.V, groups))
    return a.expand_as(b).reshape(x.M.shape), b.reshape(x.M.shape)


def check_groups(groups: object, name: str = "groups") -> None:
    """Refuse what is neither None nor a positive integer."""
    if groups is not None and (isinstance(groups, bool) or not isinstance(groups, int)):
        raise TypeError(f"{name}={groups!r} must be an integer or None")
    if groups is not None and groups < 1:
        raise ValueError(f"{name}={groups} must be at least 1")


def groups_of(groups: int | None, channels: int) -> int:
    """Return the given number, which must divide the channels, or the greatest common divisor with 32."""
    if groups is None:
        return math.gcd(32, channels)
    if channels % groups:
        raise ValueError(f"groups={groups} does not divide {channels} channels; pass a divisor, or None")
    return groups


@dataclass(frozen=True)
class _Grouped(Method):
    """``y = gamma * (x - mean_g) / sqrt(var_g + eps) + beta``, mean_g and var_g those of the channel's group."""

    batch_statistics = False  # every instance stands by itself

    @abstractmethod
    def groups_of(self, channels: int) -> int:
        """Return the number of groups that this many channels form."""

    def own_values(self, channels: int, pixels: int) -> int:
        """Return the values of a group."""
        return channels // self.groups_of(channels) * pixels

    def standardize(self, x: Instance, batch: Batch, p: Params) -> tuple[Tensor, Tensor]:
        """Return 1 / sd_g and (m - mean_g) / sd_g, with no statistic of the batch."""
        return standardize_groups(x, batch, self.groups_of(x.M.shape[1]))


@dataclass(frozen=True)
class IN(_Grouped):
    """Instance Normalization (Ulyanov et al., arXiv 1607.08022): every channel of an instance by itself."""

    name: ClassVar[str] = "in"

    def groups_of(self, channels: int) -> int:
        """Return C."""
        return channels


@dataclass(frozen=True)
class LN(_Grouped):
    """Layer Normalization over channels and space (Ba et al., arXiv 1607.06450), gamma and beta a channel each."""

    name: ClassVar[str] = "ln"

    def groups_of(self, channels: int) -> int:
        """Return 1."""
        return 1


@dataclass(frozen=True)
class GN(_Grouped):
    """Group Normalization (Wu and He, ECCV 2018, Eq. 7)."""

    name: ClassVar[str] = "gn"
    groups: int | None = None

    def __post_init__(self) -> None:
        check_groups(self.groups)

    @property
    def divisor(self) -> int:
        """Return the number of groups, if given."""
        return self.groups or 1

    def groups_of(self, channels: int) -> int:
        """Return G for this many channels."""
        return groups_of(self.groups, channels)
