"""Batch-Channel Normalization as layers."""

from __future__ import annotations

from typing import ClassVar

from calibnorm.methods.bcn import BCN
from calibnorm.nn.layer import CalibratedNorm


class _BCN(CalibratedNorm):
    method_type = BCN


class BCN1d(_BCN):
    """:class:`BCN2d` for input (N, C) or (N, C, L).

    >>> import torch, calibnorm as cn
    >>> cn.BCN1d(8, groups=2)(torch.randn(4, 8, 5)).shape
    torch.Size([4, 8, 5])
    """

    dims: ClassVar[int] = 1


class BCN2d(_BCN):
    r"""Batch-Channel Normalization (Qiao et al., arXiv 1903.10520, Section 4).

    :math:`z = \gamma (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta`, :math:`y = \gamma_c (z - \mu_g) /
    \sqrt{\sigma_g^2 + \epsilon} + \beta_c`: batch normalization, then a group normalization of its output, whose
    moments follow from those of x, so that nothing is read twice.

    Learnable: ``channel_weight`` and ``channel_bias``, one a group (as in the authors' code) or one a channel, beside
    gamma and beta in the child ``bn``.

    Args:
        num_features: Channels C of the input (N, C, H, W).
        eps: Added to the variance.
        momentum: Of the running statistics.
        affine: Learn gamma and beta.
        track_running_stats: Keep running statistics for eval.
        device: Where the parameters live.
        dtype: Dtype of the parameters.
        groups: Of the channel step; None is 32 or, where 32 does not divide C, their greatest common divisor.
        per_channel: One gamma_c and beta_c a channel instead of a group.
        noise: The constant noise attack of the IEBN paper (N_a, N_b) on the standardized feature.
        noise_in: ``"always"``, or ``"train"`` for training mode alone.
        act: ``"relu"`` applies a ReLU to the output (after the residual, if forward gets one).

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range.

    >>> import torch, calibnorm as cn
    >>> cn.BCN2d(16, groups=4)(torch.randn(8, 16, 4, 4)).shape
    torch.Size([8, 16, 4, 4])
    """

    dims: ClassVar[int] = 2


class BCN3d(_BCN):
    """:class:`BCN2d` for input (N, C, D, H, W).

    >>> import torch, calibnorm as cn
    >>> cn.BCN3d(8, groups=2)(torch.randn(2, 8, 3, 4, 5)).shape
    torch.Size([2, 8, 3, 4, 5])
    """

    dims: ClassVar[int] = 3
