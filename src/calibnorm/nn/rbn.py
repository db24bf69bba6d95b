"""Representative Batch Normalization as layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from calibnorm.methods import RBN
from calibnorm.methods.registry import Over
from calibnorm.nn.arguments import LayerArguments, takes
from calibnorm.nn.layer import CalibratedNorm


@dataclass(kw_only=True)
class _RBNArguments(LayerArguments):
    centering: bool = True
    scaling: bool = True
    center_stat: str = "mean"
    scale_stat: str = "mean"
    restrict: str = "sigmoid"
    init: tuple[float, float, float] = (0.0, 0.0, 1.0)
    over: Over = None


class _RBN(CalibratedNorm):
    method_type = RBN

    @takes(_RBNArguments)
    def __init__(self, *args: Any, **options: Any) -> None:
        r"""Representative Batch Normalization (Gao et al., CVPR 2021, Eq. 12).

        :math:`X_{cm} = X + w_m K_m`, :math:`X_s = (X_{cm} - E(X_{cm})) / \sqrt{Var(X_{cm}) + \epsilon}`, :math:`y =
        \gamma\, X_s\, R(w_v K_s + w_b) + \beta`. K_m and K_s are statistics of every plane of X and of X_s, by default
        their means. The running statistics are those of the centre-calibrated feature X_cm.

        Learnable: ``center_weight`` (w_m), ``scale_weight`` (w_v) and ``scale_bias`` (w_b), (C,), beside gamma and beta
        in the child ``bn``.

        Args:
            centering: Use the centering calibration (Table 2).
            scaling: Use the scaling calibration (Table 2). Without both the layer is plain batch normalization.
            center_stat: K_m (Table 3): ``"mean"`` or ``"std"`` of a plane; ``"spatial_mean"`` or ``"spatial_std"`` over
                the channels at a pixel (a slower path).
            scale_stat: K_s, from the same four; ``"std"`` is the RBN* of Table 1.
            restrict: R: ``"sigmoid"``, ``"tanh"``, ``"hardsigmoid"`` or ``"softsign"``.
            init: Initial w_m, w_v and w_b (Section 4.1).
            over: Another method that standardizes in place of batch normalization: its name, such as ``"sn"``, or
                ``{"method": "gn", "groups": 8}``. The equation stays, with all of that method (without gamma and beta)
                for its standardized feature; neither paper does this.
            noise: The constant noise attack of the IEBN paper (N_a, N_b): X_s becomes ``X_s * N_a + N_b`` before K_s is
                taken.

        Where a plane is constant, the derivative of its standard deviation is taken as 0.

        >>> import torch, calibnorm as cn
        >>> layer = cn.RBN2d(16)
        >>> layer(torch.randn(8, 16, 4, 4)).shape
        torch.Size([8, 16, 4, 4])
        >>> [name for name, _ in layer.named_parameters()]
        ['center_weight', 'scale_weight', 'scale_bias', 'bn.weight', 'bn.bias']
        """
        super().__init__(*args, **options)


class RBN1d(_RBN, dims=1):
    """Representative Batch Normalization of (N, C) or (N, C, L)."""


class RBN2d(_RBN, dims=2):
    """Representative Batch Normalization of (N, C, H, W)."""


class RBN3d(_RBN, dims=3):
    """Representative Batch Normalization of (N, C, D, H, W)."""
