"""Attentive Normalization as layers."""

from __future__ import annotations

from typing import ClassVar

from calibnorm.methods.an import AN
from calibnorm.nn.layer import CalibratedNorm


class _AN(CalibratedNorm):
    method_type = AN


class AN1d(_AN):
    """:class:`AN2d` for input (N, C) or (N, C, L).

    >>> import torch, calibnorm as cn
    >>> cn.AN1d(8)(torch.randn(4, 8, 5)).shape
    torch.Size([4, 8, 5])
    """

    dims: ClassVar[int] = 1


class AN2d(_AN):
    r"""Attentive Normalization (Li, Sun and Wu, ECCV 2020), over batch normalization.

    :math:`y = \hat x \sum_k \lambda_k \gamma_k + \sum_k \lambda_k \beta_k,\quad \lambda =
    \mathrm{hsigmoid}(\mathrm{BN}(W s))`: every instance mixes K affine maps, by an attention over s, the planes' means
    over their standard deviations.

    Learnable: ``mixture_weight`` and ``mixture_bias`` (K, C), ``attention_fc`` (K, C), ``attention_weight`` and
    ``attention_bias`` (K). They take gamma's and beta's place; where the layer has these too (a converted network
    does), they come first, and ``affine=False`` leaves them out. The buffers ``attention_mean`` and ``attention_var``
    are the running statistics of the attention's own normalization: they move with the child's, over the instances of a
    batch.

    Args:
        num_features: Channels C of the input (N, C, H, W).
        eps: Added to the variance.
        momentum: Of the running statistics.
        affine: Learn gamma and beta.
        track_running_stats: Keep running statistics for eval.
        device: Where the parameters live.
        dtype: Dtype of the parameters.
        mixtures: K; the paper uses 10 in the early and 20 in the late stages of a network.
        squeeze: s: ``"rsd"``, mean over standard deviation, or ``"mean"``.
        noise: The constant noise attack of the IEBN paper (N_a, N_b) on the standardized feature.
        noise_in: ``"always"``, or ``"train"`` for training mode alone.
        act: ``"relu"`` applies a ReLU to the output (after the residual, if forward gets one).

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range.

    >>> import torch, calibnorm as cn
    >>> cn.AN2d(16)(torch.randn(8, 16, 4, 4)).shape
    torch.Size([8, 16, 4, 4])
    """

    dims: ClassVar[int] = 2


class AN3d(_AN):
    """:class:`AN2d` for input (N, C, D, H, W).

    >>> import torch, calibnorm as cn
    >>> cn.AN3d(8)(torch.randn(2, 8, 3, 4, 5)).shape
    torch.Size([2, 8, 3, 4, 5])
    """

    dims: ClassVar[int] = 3
