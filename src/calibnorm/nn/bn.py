"""Batch normalization as a layer of this library: the baseline, with the constant noise attack and a gamma control."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from calibnorm.methods import BN
from calibnorm.nn.arguments import LayerArguments, takes
from calibnorm.nn.layer import CalibratedNorm


@dataclass(kw_only=True)
class _BNArguments(LayerArguments):
    gamma_init: float = 1.0


class _BN(CalibratedNorm):
    method_type = BN

    @takes(_BNArguments)
    def __init__(self, *args: Any, **options: Any) -> None:
        r"""Batch normalization (Ioffe and Szegedy, 2015), through this library's kernels.

        :math:`y = \gamma (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta`. The same function as ``nn.BatchNorm2d``,
        with the IEBN paper's constant noise attack and an initial gamma as options, so that a baseline meets the
        conditions of the methods it is compared with.

        Args:
            gamma_init: Initial gamma. Networks' own initialization may reset it to 1: ``cn.convert`` applies it after
                that.

        >>> import torch, calibnorm as cn
        >>> cn.BN2d(16, noise=(0.5, 0.2))(torch.randn(8, 16, 4, 4)).shape
        torch.Size([8, 16, 4, 4])
        """
        super().__init__(*args, **options)


class BN1d(_BN, dims=1):
    """Batch normalization of (N, C) or (N, C, L)."""


class BN2d(_BN, dims=2):
    """Batch normalization of (N, C, H, W)."""


class BN3d(_BN, dims=3):
    """Batch normalization of (N, C, D, H, W)."""
