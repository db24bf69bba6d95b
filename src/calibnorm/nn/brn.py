"""Batch Renormalization as layers."""

from __future__ import annotations

from typing import ClassVar

from calibnorm.methods.brn import BRN
from calibnorm.nn.layer import CalibratedNorm


class _BRN(CalibratedNorm):
    method_type = BRN


class BRN1d(_BRN):
    """:class:`BRN2d` for input (N, C) or (N, C, L).

    >>> import torch, calibnorm as cn
    >>> cn.BRN1d(8)(torch.randn(4, 8, 5)).shape
    torch.Size([4, 8, 5])
    """

    dims: ClassVar[int] = 1


class BRN2d(_BRN):
    r"""Batch Renormalization (Ioffe, NeurIPS 2017, Algorithm 1).

    :math:`y = \gamma ((x - \mu_B) / \sigma_B \cdot r + d) + \beta`, with r the ratio of the batch's and the running
    standard deviation within [1/r_max, r_max] and d the distance of the means over the running one within [-d_max,
    d_max], both constants to the gradient and of the running statistics before the batch. In eval plain batch
    normalization.

    The limits open as in the paper's experiment: for ``start`` batches the layer is batch normalization, then they grow
    linearly (the paper: "gradually"). Batches are those that ``bn.num_batches_tracked`` counts: a network converted
    after long training starts with open limits.

    Args:
        num_features: Channels C of the input (N, C, H, W).
        eps: Added to the variance.
        momentum: Of the running statistics.
        affine: Learn gamma and beta.
        track_running_stats: Keep running statistics for eval.
        device: Where the parameters live.
        dtype: Dtype of the parameters.
        r_max: The limit of r in the end.
        d_max: The limit of d in the end.
        start: Batches until the limits begin to open.
        r_batches: Batches until r_max is reached.
        d_batches: Batches until d_max is reached.
        noise: The constant noise attack of the IEBN paper (N_a, N_b) on the standardized feature.
        noise_in: ``"always"``, or ``"train"`` for training mode alone.
        act: ``"relu"`` applies a ReLU to the output (after the residual, if forward gets one).

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range.

    >>> import torch, calibnorm as cn
    >>> cn.BRN2d(16)(torch.randn(8, 16, 4, 4)).shape
    torch.Size([8, 16, 4, 4])
    """

    dims: ClassVar[int] = 2


class BRN3d(_BRN):
    """:class:`BRN2d` for input (N, C, D, H, W).

    >>> import torch, calibnorm as cn
    >>> cn.BRN3d(8)(torch.randn(2, 8, 3, 4, 5)).shape
    torch.Size([2, 8, 3, 4, 5])
    """

    dims: ClassVar[int] = 3
