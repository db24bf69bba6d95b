"""Switchable Normalization as layers."""

from __future__ import annotations

from typing import ClassVar

from calibnorm.methods.sn import SN
from calibnorm.nn.layer import CalibratedNorm


class _SN(CalibratedNorm):
    method_type = SN


class SN1d(_SN):
    """:class:`SN2d` for input (N, C, L).

    >>> import torch, calibnorm as cn
    >>> cn.SN1d(8)(torch.randn(4, 8, 5)).shape
    torch.Size([4, 8, 5])
    """

    dims: ClassVar[int] = 1


class SN2d(_SN):
    r"""Switchable Normalization (Luo et al., ICLR 2019, Eq. 3 to 5).

    :math:`y = \gamma (x - \sum_k w_k \mu_k) / \sqrt{\sum_k w'_k \sigma_k^2 + \epsilon} + \beta`, k in IN, LN, BN, with
    w and w' the softmax of ``mean_weight`` and ``var_weight``, three numbers a layer each. BN's statistics are those of
    the batch, in eval the running ones (the paper averages over batches after training; here it is torch's moving
    average).

    Args:
        num_features: Channels C of the input (N, C, H, W).
        eps: Added to the variance.
        momentum: Of the running statistics.
        affine: Learn gamma and beta.
        track_running_stats: Keep running statistics for eval.
        device: Where the parameters live.
        dtype: Dtype of the parameters.
        noise: The constant noise attack of the IEBN paper (N_a, N_b) on the standardized feature.
        noise_in: ``"always"``, or ``"train"`` for training mode alone.
        act: ``"relu"`` applies a ReLU to the output (after the residual, if forward gets one).

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range.

    >>> import torch, calibnorm as cn
    >>> cn.SN2d(16)(torch.randn(8, 16, 4, 4)).shape
    torch.Size([8, 16, 4, 4])
    """

    dims: ClassVar[int] = 2


class SN3d(_SN):
    """:class:`SN2d` for input (N, C, D, H, W).

    >>> import torch, calibnorm as cn
    >>> cn.SN3d(8)(torch.randn(2, 8, 3, 4, 5)).shape
    torch.Size([2, 8, 3, 4, 5])
    """

    dims: ClassVar[int] = 3
