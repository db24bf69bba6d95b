"""Instance, Group and Layer Normalization as layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from calibnorm.methods.group import GN, IN, LN
from calibnorm.nn.arguments import LayerArguments, takes
from calibnorm.nn.layer import CalibratedNorm


class _IN(CalibratedNorm):
    method_type = IN

    @takes(LayerArguments)
    def __init__(self, *args: Any, **options: Any) -> None:
        r"""Instance Normalization (Ulyanov et al., arXiv 1607.08022).

        :math:`y = \gamma (x - m) / \sqrt{v + \epsilon} + \beta`, m and v the mean and biased variance of every plane of
        the input. The same in training and in eval, and for any batch. As ``nn.InstanceNorm2d`` with ``affine=True``.

        >>> import torch, calibnorm as cn
        >>> cn.IN2d(16)(torch.randn(8, 16, 4, 4)).shape
        torch.Size([8, 16, 4, 4])
        """
        super().__init__(*args, **options)


class IN1d(_IN, dims=1):
    """Instance Normalization of (N, C, L)."""


class IN2d(_IN, dims=2):
    """Instance Normalization of (N, C, H, W)."""


class IN3d(_IN, dims=3):
    """Instance Normalization of (N, C, D, H, W)."""


@dataclass(kw_only=True)
class _GNArguments(LayerArguments):
    groups: int | None = None


class _GN(CalibratedNorm):
    method_type = GN

    @takes(_GNArguments)
    def __init__(self, *args: Any, **options: Any) -> None:
        r"""Group Normalization (Wu and He, ECCV 2018, Eq. 1 to 7).

        :math:`y = \gamma (x - \mu_g) / \sqrt{\sigma_g^2 + \epsilon} + \beta`, with mean and biased variance of an
        instance over the pixels of a group of neighbouring channels. The same in training and in eval, and for any
        batch. As ``nn.GroupNorm``.

        Args:
            groups: G, which must divide C; None is the paper's 32 or, where 32 does not divide C (the paper does not
                say what then), their greatest common divisor.

        >>> import torch, calibnorm as cn
        >>> cn.GN2d(16, groups=4)(torch.randn(8, 16, 4, 4)).shape
        torch.Size([8, 16, 4, 4])
        """
        super().__init__(*args, **options)


class GN1d(_GN, dims=1):
    """Group Normalization of (N, C) or (N, C, L)."""


class GN2d(_GN, dims=2):
    """Group Normalization of (N, C, H, W)."""


class GN3d(_GN, dims=3):
    """Group Normalization of (N, C, D, H, W)."""


class _LN(CalibratedNorm):
    method_type = LN

    @takes(LayerArguments)
    def __init__(self, *args: Any, **options: Any) -> None:
        r"""Layer Normalization over channels and space (Ba et al., arXiv 1607.06450).

        :math:`y = \gamma (x - \mu_n) / \sqrt{\sigma_n^2 + \epsilon} + \beta`, with mean and biased variance of an
        instance over all its channels and pixels, gamma and beta one a channel (as the tables of the GN paper have it),
        where ``nn.LayerNorm`` has one a value. The same in training and in eval.

        >>> import torch, calibnorm as cn
        >>> cn.LN2d(16)(torch.randn(8, 16, 4, 4)).shape
        torch.Size([8, 16, 4, 4])
        """
        super().__init__(*args, **options)


class LN1d(_LN, dims=1):
    """Layer Normalization of (N, C) or (N, C, L)."""


class LN2d(_LN, dims=2):
    """Layer Normalization of (N, C, H, W)."""


class LN3d(_LN, dims=3):
    """Layer Normalization of (N, C, D, H, W)."""
