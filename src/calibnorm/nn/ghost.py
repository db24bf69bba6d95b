"""Ghost Batch Normalization as layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from calibnorm.methods.ghost import GhostBN
from calibnorm.nn.arguments import LayerArguments, takes
from calibnorm.nn.layer import CalibratedNorm


@dataclass(kw_only=True)
class _GhostBNArguments(LayerArguments):
    size: int = 128


class _GhostBN(CalibratedNorm):
    method_type = GhostBN

    @takes(_GhostBNArguments)
    def __init__(self, *args: Any, **options: Any) -> None:
        r"""Ghost Batch Normalization (Hoffer, Hubara and Soudry, NeurIPS 2017, Algorithm 1).

        :math:`y = \gamma (x - \mu_B) / \sqrt{\sigma_B^2 + \epsilon} + \beta`, with mean and biased variance of a
        channel over B, the run of ``size`` instances that an instance belongs to; in eval plain batch normalization.
        The running statistics move once for every ghost batch, one after the other, each time with the momentum of a
        batch, as Algorithm 1 does. A remainder of the batch is a smaller ghost batch; the paper assumes that there is
        none.

        Args:
            size: Instances of a ghost batch; the paper's experiments use 128.

        >>> import torch, calibnorm as cn
        >>> cn.GhostBN2d(16, size=4)(torch.randn(8, 16, 4, 4)).shape
        torch.Size([8, 16, 4, 4])
        """
        super().__init__(*args, **options)


class GhostBN1d(_GhostBN, dims=1):
    """Ghost Batch Normalization of (N, C) or (N, C, L)."""


class GhostBN2d(_GhostBN, dims=2):
    """Ghost Batch Normalization of (N, C, H, W)."""


class GhostBN3d(_GhostBN, dims=3):
    """Ghost Batch Normalization of (N, C, D, H, W)."""
