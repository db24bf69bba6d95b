"""Squeeze-and-Excitation as layers, after batch normalization or alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from calibnorm.methods.se import SE
from calibnorm.nn.arguments import LayerArguments, takes
from calibnorm.nn.layer import CalibratedNorm


@dataclass(kw_only=True)
class _SEArguments(LayerArguments):
    alone: bool = False
    reduction: int = 16
    biases: bool = True


class _SE(CalibratedNorm):
    method_type = SE

    @takes(_SEArguments)
    def __init__(self, *args: Any, **options: Any) -> None:
        r"""Squeeze-and-Excitation after batch normalization, or alone (Hu et al., CVPR 2018, Eq. 2 to 4).

        :math:`y = d\,z,\quad d = \sigma(W_2\,\mathrm{relu}(W_1 \bar z + b_1) + b_2)`, where z is the output of batch
        normalization and :math:`\bar z`, (N, C), the mean of every plane of it, which costs no read of the pixels; with
        ``alone=True`` z is the input itself.

        Learnable: ``fc1_weight`` (C / reduction, C), ``fc1_bias``, ``fc2_weight`` (C, C / reduction) and ``fc2_bias``,
        beside gamma and beta in the child ``bn``. Eq. 3 of the paper has no biases; SE-ResNet's parameter counts in the
        IEBN paper do. ``cn.convert(model, "se")`` puts the layer after the last BatchNorm of every residual branch.

        Args:
            alone: No batch normalization: neither gamma and beta nor statistics, and affine and track_running_stats
                have no effect. For branches that end in a convolution (PreResNet, DenseNet).
            reduction: Channels per hidden unit, r; fewer channels than that have one hidden unit.
            biases: Whether the two fully connected layers have them.

        >>> import torch, calibnorm as cn
        >>> cn.SE2d(16)(torch.randn(8, 16, 4, 4)).shape
        torch.Size([8, 16, 4, 4])
        >>> [name for name, _ in cn.SE2d(16, alone=True).named_parameters()]
        ['fc1_weight', 'fc1_bias', 'fc2_weight', 'fc2_bias']
        """
        super().__init__(*args, **options)


class SE1d(_SE, dims=1):
    """Squeeze-and-Excitation of (N, C) or (N, C, L)."""


class SE2d(_SE, dims=2):
    """Squeeze-and-Excitation of (N, C, H, W)."""


class SE3d(_SE, dims=3):
    """Squeeze-and-Excitation of (N, C, D, H, W)."""
