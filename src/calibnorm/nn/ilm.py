"""Instance-Level Meta Normalization as layers."""

from __future__ import annotations

from typing import ClassVar

from calibnorm.methods.ilm import ILM
from calibnorm.nn.layer import CalibratedNorm


class _ILM(CalibratedNorm):
    method_type = ILM


class ILM1d(_ILM):
    """:class:`ILM2d` for input (N, C) or (N, C, L).

    >>> import torch, calibnorm as cn
    >>> cn.ILM1d(8, groups=2)(torch.randn(4, 8, 5)).shape
    torch.Size([4, 8, 5])
    """

    dims: ClassVar[int] = 1


class ILM2d(_ILM):
    r"""Instance-Level Meta Normalization (Jia et al., CVPR 2019), over group normalization.

    :math:`y = \omega (x - \mu_g) / \sqrt{\sigma_g^2 + \epsilon} + \beta`, where an instance predicts its own
    :math:`\omega = \mathrm{weight} + \sigma(U_1\,\mathrm{relu}(W v_k))` and :math:`\beta = \mathrm{bias} +
    \tanh(U_2\,\mathrm{relu}(W m_k))` from the moments of key groups of channels.

    Learnable: ``encoder_weight`` (W), ``scale_decoder_weight`` (U_1) and ``shift_decoder_weight`` (U_2), beside weight
    and bias, one a channel, in the child ``bn``. The same in training and in eval.

    The child ``bn`` owns gamma and beta. Its running statistics are neither used nor moved; they are there so that
    checkpoints keep the shape of BatchNorm's, and ``track_running_stats=False`` leaves them out.

    Args:
        num_features: Channels C of the input (N, C, H, W).
        eps: Added to the variance.
        momentum: Of the running statistics, which are not used.
        affine: Learn gamma and beta.
        track_running_stats: Keep running statistics, which are not used.
        device: Where the parameters live.
        dtype: Dtype of the parameters.
        groups: Of the normalization; None is 32 or, where 32 does not divide C, their greatest common divisor.
        key_size: Channels a key group; None is 16 or, where 16 does not divide C, their greatest common divisor.
        reduction: Key groups per hidden unit; with fewer key groups than that, 2 hidden units.
        noise: The constant noise attack of the IEBN paper (N_a, N_b) on the standardized feature.
        noise_in: ``"always"``, or ``"train"`` for training mode alone.
        act: ``"relu"`` applies a ReLU to the output (after the residual, if forward gets one).

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range.

    >>> import torch, calibnorm as cn
    >>> cn.ILM2d(16, groups=4)(torch.randn(8, 16, 4, 4)).shape
    torch.Size([8, 16, 4, 4])
    """

    dims: ClassVar[int] = 2


class ILM3d(_ILM):
    """:class:`ILM2d` for input (N, C, D, H, W).

    >>> import torch, calibnorm as cn
    >>> cn.ILM3d(8, groups=2)(torch.randn(2, 8, 3, 4, 5)).shape
    torch.Size([2, 8, 3, 4, 5])
    """

    dims: ClassVar[int] = 3
