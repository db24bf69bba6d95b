"""Instance-Level Meta Normalization as layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from calibnorm.methods.ilm import ILM
from calibnorm.nn.arguments import LayerArguments, takes
from calibnorm.nn.layer import CalibratedNorm


@dataclass(kw_only=True)
class _ILMArguments(LayerArguments):
    groups: int | None = None
    key_size: int | None = None
    reduction: int = 16


class _ILM(CalibratedNorm):
    method_type = ILM

    @takes(_ILMArguments)
    def __init__(self, *args: Any, **options: Any) -> None:
        r"""Instance-Level Meta Normalization (Jia et al., CVPR 2019), over group normalization.

        :math:`y = \omega (x - \mu_g) / \sqrt{\sigma_g^2 + \epsilon} + \beta`, where an instance predicts its own
        :math:`\omega = \mathrm{weight} + \sigma(U_1\,\mathrm{relu}(W v_k))` and :math:`\beta = \mathrm{bias} +
        \tanh(U_2\,\mathrm{relu}(W m_k))` from the moments of key groups of channels.

        Learnable: ``encoder_weight`` (W), ``scale_decoder_weight`` (U_1) and ``shift_decoder_weight`` (U_2), beside
        weight and bias, one a channel, in the child ``bn``. The same in training and in eval.

        Args:
            groups: Of the normalization; None is 32 or, where 32 does not divide C, their greatest common divisor.
            key_size: Channels a key group; None is 16 or, where 16 does not divide C, their greatest common divisor.
            reduction: Key groups per hidden unit; with fewer key groups than that, 2 hidden units.

        >>> import torch, calibnorm as cn
        >>> cn.ILM2d(16, groups=4)(torch.randn(8, 16, 4, 4)).shape
        torch.Size([8, 16, 4, 4])
        """
        super().__init__(*args, **options)


class ILM1d(_ILM, dims=1):
    """Instance-Level Meta Normalization of (N, C) or (N, C, L)."""


class ILM2d(_ILM, dims=2):
    """Instance-Level Meta Normalization of (N, C, H, W)."""


class ILM3d(_ILM, dims=3):
    """Instance-Level Meta Normalization of (N, C, D, H, W)."""
