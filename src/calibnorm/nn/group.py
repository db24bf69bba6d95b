"""Instance, Group and Layer Normalization as layers."""

from __future__ import annotations

from typing import ClassVar

from calibnorm.methods.group import GN, IN, LN
from calibnorm.nn.layer import CalibratedNorm


class _IN(CalibratedNorm):
    method_type = IN


class IN1d(_IN):
    """:class:`IN2d` for input (N, C, L).

    >>> import torch, calibnorm as cn
    >>> cn.IN1d(8)(torch.randn(4, 8, 5)).shape
    torch.Size([4, 8, 5])
    """

    dims: ClassVar[int] = 1


class IN2d(_IN):
    r"""Instance Normalization (Ulyanov et al., arXiv 1607.08022).

    :math:`y = \gamma (x - m) / \sqrt{v + \epsilon} + \beta`, m and v the mean and biased variance of every plane of the
    input. The same in training and in eval, and for any batch. As ``nn.InstanceNorm2d`` with ``affine=True``.

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
        noise: The constant noise attack of the IEBN paper (N_a, N_b) on the standardized feature.
        noise_in: ``"always"``, or ``"train"`` for training mode alone.
        act: ``"relu"`` applies a ReLU to the output (after the residual, if forward gets one).

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range.

    >>> import torch, calibnorm as cn
    >>> cn.IN2d(16)(torch.randn(8, 16, 4, 4)).shape
    torch.Size([8, 16, 4, 4])
    """

    dims: ClassVar[int] = 2


class IN3d(_IN):
    """:class:`IN2d` for input (N, C, D, H, W).

    >>> import torch, calibnorm as cn
    >>> cn.IN3d(8)(torch.randn(2, 8, 3, 4, 5)).shape
    torch.Size([2, 8, 3, 4, 5])
    """

    dims: ClassVar[int] = 3


class _GN(CalibratedNorm):
    method_type = GN


class GN1d(_GN):
    """:class:`GN2d` for input (N, C) or (N, C, L).

    >>> import torch, calibnorm as cn
    >>> cn.GN1d(8, groups=2)(torch.randn(4, 8, 5)).shape
    torch.Size([4, 8, 5])
    """

    dims: ClassVar[int] = 1


class GN2d(_GN):
    r"""Group Normalization (Wu and He, ECCV 2018, Eq. 1 to 7).

    :math:`y = \gamma (x - \mu_g) / \sqrt{\sigma_g^2 + \epsilon} + \beta`, with mean and biased variance of an instance
    over the pixels of a group of neighbouring channels. The same in training and in eval, and for any batch. As
    ``nn.GroupNorm``.

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
        groups: G, which must divide C; None is the paper's 32 or, where 32 does not divide C, their greatest common
            divisor.
        noise: The constant noise attack of the IEBN paper (N_a, N_b) on the standardized feature.
        noise_in: ``"always"``, or ``"train"`` for training mode alone.
        act: ``"relu"`` applies a ReLU to the output (after the residual, if forward gets one).

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range.

    >>> import torch, calibnorm as cn
    >>> cn.GN2d(16, groups=4)(torch.randn(8, 16, 4, 4)).shape
    torch.Size([8, 16, 4, 4])
    """

    dims: ClassVar[int] = 2


class GN3d(_GN):
    """:class:`GN2d` for input (N, C, D, H, W).

    >>> import torch, calibnorm as cn
    >>> cn.GN3d(8, groups=2)(torch.randn(2, 8, 3, 4, 5)).shape
    torch.Size([2, 8, 3, 4, 5])
    """

    dims: ClassVar[int] = 3


class _LN(CalibratedNorm):
    method_type = LN


class LN1d(_LN):
    """:class:`LN2d` for input (N, C) or (N, C, L).

    >>> import torch, calibnorm as cn
    >>> cn.LN1d(8)(torch.randn(4, 8, 5)).shape
    torch.Size([4, 8, 5])
    """

    dims: ClassVar[int] = 1


class LN2d(_LN):
    r"""Layer Normalization over channels and space (Ba et al., arXiv 1607.06450).

    :math:`y = \gamma (x - \mu_n) / \sqrt{\sigma_n^2 + \epsilon} + \beta`, with mean and biased variance of an instance
    over all its channels and pixels, gamma and beta one a channel (as the tables of the GN paper have it), where
    ``nn.LayerNorm`` has one a value. The same in training and in eval.

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
        noise: The constant noise attack of the IEBN paper (N_a, N_b) on the standardized feature.
        noise_in: ``"always"``, or ``"train"`` for training mode alone.
        act: ``"relu"`` applies a ReLU to the output (after the residual, if forward gets one).

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range.

    >>> import torch, calibnorm as cn
    >>> cn.LN2d(16)(torch.randn(8, 16, 4, 4)).shape
    torch.Size([8, 16, 4, 4])
    """

    dims: ClassVar[int] = 2


class LN3d(_LN):
    """:class:`LN2d` for input (N, C, D, H, W).

    >>> import torch, calibnorm as cn
    >>> cn.LN3d(8)(torch.randn(2, 8, 3, 4, 5)).shape
    torch.Size([2, 8, 3, 4, 5])
    """

    dims: ClassVar[int] = 3
