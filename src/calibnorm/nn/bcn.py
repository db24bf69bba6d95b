"""Batch-Channel Normalization as layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from calibnorm.methods.bcn import BCN
from calibnorm.nn.arguments import LayerArguments, takes
from calibnorm.nn.layer import CalibratedNorm


@dataclass(kw_only=True)
class _BCNArguments(LayerArguments):
    groups: int | None = None
    per_channel: bool = False


class _BCN(CalibratedNorm):
    method_type = BCN

    @takes(_BCNArguments)
    def __init__(self, *args: Any, **options: Any) -> None:
        r"""Batch-Channel Normalization (Qiao et al., arXiv 1903.10520, Section 4).

        :math:`z = \gamma (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta`, :math:`y = \gamma_c (z - \mu_g) /
        \sqrt{\sigma_g^2 + \epsilon} + \beta_c`: batch normalization, then a group normalization of its output, whose
        moments follow from those of x, so that nothing is read twice.

        Learnable: ``channel_weight`` and ``channel_bias``, one a group (as in the authors' code) or one a channel,
        beside gamma and beta in the child ``bn``.

        Args:
            groups: Of the channel step; None is 32 or, where 32 does not divide C, their greatest common divisor.
            per_channel: One gamma_c and beta_c a channel instead of a group.

        >>> import torch, calibnorm as cn
        >>> cn.BCN2d(16, groups=4)(torch.randn(8, 16, 4, 4)).shape
        torch.Size([8, 16, 4, 4])
        """
        super().__init__(*args, **options)


class BCN1d(_BCN, dims=1):
    """Batch-Channel Normalization of (N, C) or (N, C, L)."""


class BCN2d(_BCN, dims=2):
    """Batch-Channel Normalization of (N, C, H, W)."""


class BCN3d(_BCN, dims=3):
    """Batch-Channel Normalization of (N, C, D, H, W)."""
