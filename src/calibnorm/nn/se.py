"""Squeeze-and-Excitation as layers, after batch normalization or alone."""

from __future__ import annotations

from typing import ClassVar

from calibnorm.methods.se import SE
from calibnorm.nn.layer import CalibratedNorm


class _SE(CalibratedNorm):
    method_type = SE


class SE1d(_SE):
    """:class:`SE2d` for input (N, C) or (N, C, L).

    >>> import torch, calibnorm as cn
    >>> cn.SE1d(8)(torch.randn(4, 8, 5)).shape
    torch.Size([4, 8, 5])
    """

    dims: ClassVar[int] = 1


class SE2d(_SE):
    r"""Squeeze-and-Excitation after batch normalization, or alone (Hu et al., CVPR 2018, Eq. 2 to 4).

    :math:`y = d\,z,\quad d = \sigma(W_2\,\mathrm{relu}(W_1 \bar z + b_1) + b_2)`, where z is the output of batch
    normalization and :math:`\bar z`, (N, C), the mean of every plane of it, which costs no read of the pixels; with
    ``alone=True`` z is the input itself.

    Learnable: ``fc1_weight`` (C / reduction, C), ``fc1_bias``, ``fc2_weight`` (C, C / reduction) and ``fc2_bias``,
    beside gamma and beta in the child ``bn``. Eq. 3 of the paper has no biases; SE-ResNet's parameter counts in the
    IEBN paper do. ``cn.convert(model, "se")`` puts the layer after the last BatchNorm of every residual branch.

    Args:
        num_features: Channels C of the input (N, C, H, W).
        eps: Added to the variance.
        momentum: Of the running statistics.
        affine: Learn gamma and beta.
        track_running_stats: Keep running statistics for eval.
        device: Where the parameters live.
        dtype: Dtype of the parameters.
        alone: No batch normalization: neither gamma and beta nor statistics, and affine and track_running_stats have no
            effect. For branches that end in a convolution (PreResNet, DenseNet).
        reduction: Channels per hidden unit, r.
        biases: Whether the two fully connected layers have them.
        noise: The constant noise attack of the IEBN paper (N_a, N_b) on the standardized feature.
        noise_in: ``"always"``, or ``"train"`` for training mode alone.
        act: ``"relu"`` applies a ReLU to the output (after the residual, if forward gets one).

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range.

    >>> import torch, calibnorm as cn
    >>> cn.SE2d(16)(torch.randn(8, 16, 4, 4)).shape
    torch.Size([8, 16, 4, 4])
    >>> [name for name, _ in cn.SE2d(16, alone=True).named_parameters()]
    ['fc1_weight', 'fc1_bias', 'fc2_weight', 'fc2_bias']
    """

    dims: ClassVar[int] = 2


class SE3d(_SE):
    """:class:`SE2d` for input (N, C, D, H, W).

    >>> import torch, calibnorm as cn
    >>> cn.SE3d(8)(torch.randn(2, 8, 3, 4, 5)).shape
    torch.Size([2, 8, 3, 4, 5])
    """

    dims: ClassVar[int] = 3
