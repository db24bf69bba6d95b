"""Batch Renormalization as layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from calibnorm.methods.brn import BRN
from calibnorm.nn.arguments import LayerArguments, takes
from calibnorm.nn.layer import CalibratedNorm


@dataclass(kw_only=True)
class _BRNArguments(LayerArguments):
    r_max: float = 3.0
    d_max: float = 5.0
    start: int = 5000
    r_batches: int = 40_000
    d_batches: int = 25_000


class _BRN(CalibratedNorm):
    method_type = BRN

    @takes(_BRNArguments)
    def __init__(self, *args: Any, **options: Any) -> None:
        r"""Batch Renormalization (Ioffe, NeurIPS 2017, Algorithm 1).

        :math:`y = \gamma ((x - \mu_B) / \sigma_B \cdot r + d) + \beta`, with r the ratio of the batch's and the running
        standard deviation within [1/r_max, r_max] and d the distance of the means over the running one within [-d_max,
        d_max], both constants to the gradient and of the running statistics before the batch. In eval plain batch
        normalization.

        The limits open as in the paper's experiment: for ``start`` batches the layer is batch normalization, then they
        grow linearly (the paper: "gradually"). Batches are those that ``bn.num_batches_tracked`` counts: a network
        converted after long training starts with open limits.

        Args:
            r_max: The limit of r in the end.
            d_max: The limit of d in the end.
            start: Batches until the limits begin to open.
            r_batches: Batches until r_max is reached.
            d_batches: Batches until d_max is reached.

        >>> import torch, calibnorm as cn
        >>> cn.BRN2d(16)(torch.randn(8, 16, 4, 4)).shape
        torch.Size([8, 16, 4, 4])
        """
        super().__init__(*args, **options)


class BRN1d(_BRN, dims=1):
    """Batch Renormalization of (N, C) or (N, C, L)."""


class BRN2d(_BRN, dims=2):
    """Batch Renormalization of (N, C, H, W)."""


class BRN3d(_BRN, dims=3):
    """Batch Renormalization of (N, C, D, H, W)."""
