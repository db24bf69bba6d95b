"""Switchable Normalization as layers."""

from __future__ import annotations

from typing import Any

from calibnorm.methods.sn import SN
from calibnorm.nn.arguments import LayerArguments, takes
from calibnorm.nn.layer import CalibratedNorm


class _SN(CalibratedNorm):
    method_type = SN

    @takes(LayerArguments)
    def __init__(self, *args: Any, **options: Any) -> None:
        r"""Switchable Normalization (Luo et al., ICLR 2019, Eq. 3 to 5).

        :math:`y = \gamma (x - \sum_k w_k \mu_k) / \sqrt{\sum_k w'_k \sigma_k^2 + \epsilon} + \beta`, k in IN, LN, BN,
        with w and w' the softmax of ``mean_weight`` and ``var_weight``, three numbers a layer each. BN's statistics are
        those of the batch, in eval the running ones (the paper averages over batches after training; here it is torch's
        moving average).

        >>> import torch, calibnorm as cn
        >>> cn.SN2d(16)(torch.randn(8, 16, 4, 4)).shape
        torch.Size([8, 16, 4, 4])
        """
        super().__init__(*args, **options)


class SN1d(_SN, dims=1):
    """Switchable Normalization of (N, C, L)."""


class SN2d(_SN, dims=2):
    """Switchable Normalization of (N, C, H, W)."""


class SN3d(_SN, dims=3):
    """Switchable Normalization of (N, C, D, H, W)."""
