"""Ghost Batch Normalization as layers."""

from __future__ import annotations

from typing import ClassVar

from calibnorm.methods.ghost import GhostBN
from calibnorm.nn.layer import CalibratedNorm


class _GhostBN(CalibratedNorm):
    method_type = GhostBN


class GhostBN1d(_GhostBN):
    """:class:`GhostBN2d` for input (N, C) or (N, C, L).

    >>> import torch, calibnorm as cn
    >>> cn.GhostBN1d(8, size=2)(torch.randn(4, 8, 5)).shape
    torch.Size([4, 8, 5])
    """

    dims: ClassVar[int] = 1


class GhostBN2d(_GhostBN):
    r"""Ghost Batch Normalization (Hoffer, Hubara and Soudry, NeurIPS 2017, Algorithm 1).

    :math:`y = \gamma (x - \mu_B) / \sqrt{\sigma_B^2 + \epsilon} + \beta`, with mean and biased variance of a channel
    over B, the run of ``size`` instances that an instance belongs to; in eval plain batch normalization. The running
    statistics move once for every ghost batch, one after the other, each time with the momentum of a batch, as
    Algorithm 1 does. A remainder of the batch is a smaller ghost batch; the paper assumes that there is none.

    Args:
        num_features: Channels C of the input (N, C, H, W).
        eps: Added to the variance.
        momentum: Of the running statistics.
        affine: Learn gamma and beta.
        track_running_stats: Keep running statistics for eval.
        device: Where the parameters live.
        dtype: Dtype of the parameters.
        size: Instances of a ghost batch; the paper's experiments use 128.
        noise: The constant noise attack of the IEBN paper (N_a, N_b) on the standardized feature.
        noise_in: ``"always"``, or ``"train"`` for training mode alone.
        act: ``"relu"`` applies a ReLU to the output (after the residual, if forward gets one).

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range.

    >>> import torch, calibnorm as cn
    >>> cn.GhostBN2d(16, size=4)(torch.randn(8, 16, 4, 4)).shape
    torch.Size([8, 16, 4, 4])
    """

    dims: ClassVar[int] = 2


class GhostBN3d(_GhostBN):
    """:class:`GhostBN2d` for input (N, C, D, H, W).

    >>> import torch, calibnorm as cn
    >>> cn.GhostBN3d(8, size=2)(torch.randn(2, 8, 3, 4, 5)).shape
    torch.Size([2, 8, 3, 4, 5])
    """

    dims: ClassVar[int] = 3
