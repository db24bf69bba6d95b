"""Representative Batch Normalization as layers."""

from __future__ import annotations

from typing import ClassVar

import torch

from calibnorm._checks import Noise
from calibnorm.methods import RBN
from calibnorm.methods.registry import Over
from calibnorm.nn.layer import CalibratedNorm
from calibnorm.nn.options import checked


class _RBN(CalibratedNorm):
    method_type = RBN

    @checked
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        centering: bool = True,
        scaling: bool = True,
        center_stat: str = "mean",
        scale_stat: str = "mean",
        restrict: str = "sigmoid",
        init: tuple[float, float, float] = (0.0, 0.0, 1.0),
        over: Over = None,
        noise: Noise | None = None,
        noise_in: str = "always",
        act: str | None = None,
    ) -> None:
        super().__init__(
            num_features,
            eps,
            momentum,
            affine,
            track_running_stats,
            device,
            dtype,
            noise=noise,
            noise_in=noise_in,
            act=act,
            centering=centering,
            scaling=scaling,
            center_stat=center_stat,
            scale_stat=scale_stat,
            restrict=restrict,
            init=init,
            over=over,
        )


class RBN1d(_RBN):
    """:class:`RBN2d` for input (N, C) or (N, C, L).

    >>> import torch, calibnorm as cn
    >>> cn.RBN1d(8)(torch.randn(4, 8)).shape
    torch.Size([4, 8])
    """

    dims: ClassVar[int] = 1


class RBN2d(_RBN):
    r"""Representative Batch Normalization (Gao et al., CVPR 2021, Eq. 12).

    :math:`X_{cm} = X + w_m K_m`, :math:`X_s = (X_{cm} - E(X_{cm})) / \sqrt{Var(X_{cm}) + \epsilon}`,
    :math:`y = \gamma\, X_s\, R(w_v K_s + w_b) + \beta`. K_m and K_s are statistics of every plane of X and of X_s, by
    default their means. The running statistics are those of the centre-calibrated feature X_cm.

    Learnable: ``center_weight`` (w_m), ``scale_weight`` (w_v) and ``scale_bias`` (w_b), (C,), beside gamma and beta in
    the child ``bn``.

    Args:
        num_features: Channels C of the input (N, C, H, W).
        eps: Added to the variance.
        momentum: Weight of a batch in the running statistics; None averages over all batches.
        affine: Learn gamma and beta.
        track_running_stats: Keep running statistics for eval.
        device: Where the parameters live.
        dtype: Dtype of the parameters.
        centering: Use the centering calibration (Table 2).
        scaling: Use the scaling calibration (Table 2). Without both the layer is plain batch normalization.
        center_stat: K_m (Table 3): ``"mean"`` or ``"std"`` of a plane; ``"spatial_mean"`` or ``"spatial_std"`` over the
            channels at a pixel (a slower path).
        scale_stat: K_s, from the same four; ``"std"`` is the RBN* of Table 1.
        restrict: R: ``"sigmoid"``, ``"tanh"``, ``"hardsigmoid"`` or ``"softsign"``.
        init: Initial w_m, w_v and w_b (Section 4.1).
        over: Another method that standardizes in place of batch normalization: its name, such as ``"sn"``, or
            ``{"method": "gn", "groups": 8}``. The equation stays, with all of that method (without gamma and beta) for
            its standardized feature; neither paper does this.
        noise: The constant noise attack of the IEBN paper (N_a, N_b): X_s becomes ``X_s * N_a + N_b`` before K_s is
            taken.
        noise_in: ``"always"``, or ``"train"`` for training mode of the layer (not of its ``bn``) alone.
        act: ``"relu"`` applies a ReLU to the output (after the residual, if forward gets one).

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range.

    Statistics and calibrations are computed in float32 or wider; the output has the input's dtype. Where a plane is
    constant, the derivative of its standard deviation is taken as 0.

    >>> import torch, calibnorm as cn
    >>> layer = cn.RBN2d(16)
    >>> layer(torch.randn(8, 16, 4, 4)).shape
    torch.Size([8, 16, 4, 4])
    >>> [name for name, _ in layer.named_parameters()]
    ['center_weight', 'scale_weight', 'scale_bias', 'bn.weight', 'bn.bias']
    """

    dims: ClassVar[int] = 2


class RBN3d(_RBN):
    """:class:`RBN2d` for input (N, C, D, H, W).

    >>> import torch, calibnorm as cn
    >>> cn.RBN3d(8)(torch.randn(2, 8, 3, 4, 5)).shape
    torch.Size([2, 8, 3, 4, 5])
    """

    dims: ClassVar[int] = 3
