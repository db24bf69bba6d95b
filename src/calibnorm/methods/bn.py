"""Batch Normalization (Ioffe and Szegedy, 2015): the baseline, through the same three steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from calibnorm import _checks
from calibnorm.methods.base import Method


@dataclass(frozen=True)
class BN(Method):
    """``y = gamma * (x - mu) / sqrt(var + eps) + beta`` (Ioffe and Szegedy 2015, Algorithm 1).

    Args:
        gamma_init: What gamma starts at. Not in the paper: a control for gates, which start the effective scale
            below one.
    """

    name: ClassVar[str] = "bn"
    plain_in_eval = True
    gamma_init: float = 1.0

    def __post_init__(self) -> None:
        _checks.real("gamma_init", self.gamma_init)

    @property
    def initial_weight(self) -> float:
        """Return ``gamma_init``."""
        return self.gamma_init
