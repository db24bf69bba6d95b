"""Attentive Normalization as layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from calibnorm.methods.an import AN
from calibnorm.nn.arguments import LayerArguments, takes
from calibnorm.nn.layer import CalibratedNorm


@dataclass(kw_only=True)
class _ANArguments(LayerArguments):
    mixtures: int = 10
    squeeze: str = "rsd"


class _AN(CalibratedNorm):
    method_type = AN

    @takes(_ANArguments)
    def __init__(self, *args: Any, **options: Any) -> None:
        r"""Attentive Normalization (Li, Sun and Wu, ECCV 2020), over batch normalization.

        :math:`y = \hat x \sum_k \lambda_k \gamma_k + \sum_k \lambda_k \beta_k,\quad \lambda =
        \mathrm{hsigmoid}(\mathrm{BN}(W s))`: every instance mixes K affine maps, by an attention over s, the planes'
        means over their standard deviations.

        Learnable: ``mixture_weight`` and ``mixture_bias`` (K, C), ``attention_fc`` (K, C), ``attention_weight`` and
        ``attention_bias`` (K). They take gamma's and beta's place; where the layer has these too (a converted network
        does), they come first, and ``affine=False`` leaves them out. The buffers ``attention_mean`` and
        ``attention_var`` are the running statistics of the attention's own normalization: they move with the child's,
        over the instances of a batch.

        Args:
            mixtures: K; the paper uses 10 in the early and 20 in the late stages of a network, which no layer can see.
            squeeze: s: ``"rsd"``, mean over standard deviation, or ``"mean"``.

        >>> import torch, calibnorm as cn
        >>> cn.AN2d(16)(torch.randn(8, 16, 4, 4)).shape
        torch.Size([8, 16, 4, 4])
        """
        super().__init__(*args, **options)


class AN1d(_AN, dims=1):
    """Attentive Normalization of (N, C) or (N, C, L)."""


class AN2d(_AN, dims=2):
    """Attentive Normalization of (N, C, H, W)."""


class AN3d(_AN, dims=3):
    """Attentive Normalization of (N, C, D, H, W)."""
