"""Instance Enhancement Batch Normalization as layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from calibnorm.methods import IEBN
from calibnorm.methods.registry import Over
from calibnorm.nn.arguments import LayerArguments, takes
from calibnorm.nn.layer import CalibratedNorm


@dataclass(kw_only=True)
class _IEBNArguments(LayerArguments):
    operator: str = "linear"
    position: str = "gamma"
    activation: str = "sigmoid"
    init: tuple[float, float] = (0.0, -1.0)
    reduction: int = 16
    gate_input: str = "mean"
    over: Over = None


class _IEBN(CalibratedNorm):
    method_type = IEBN

    @takes(_IEBNArguments)
    def __init__(self, *args: Any, **options: Any) -> None:
        r"""Instance Enhancement Batch Normalization (Liang et al., AAAI 2020, Algorithm 1 of arXiv 1908.04008v2).

        :math:`y = \hat x\,(\gamma\,\delta) + \beta,\quad \delta = \sigma(\hat g\, m + \hat b)`, where x^ is the input
        standardized as in batch normalization and m, (N, C), the mean of every plane of the input (Eq. 3, 8 and 9).

        Learnable: ``gate_weight`` (g_hat) and ``gate_bias`` (b_hat), (C,), beside gamma and beta in the child ``bn``;
        ``fc1_weight``, ``fc1_bias``, ``fc2_weight``, ``fc2_bias`` with ``operator="fc"``.

        Args:
            operator: ``"linear"``; ``"identity"``, sigmoid(m) without parameters; ``"fc"``, two layers over all
                channels (Table 4).
            position: What the gate multiplies: ``"gamma"``, ``"beta"`` or ``"both"`` (Table 4).
            activation: ``"sigmoid"``, ``"tanh"``, ``"relu"`` or ``"softmax"`` over channels (Fig. 4).
            init: Initial g_hat and b_hat (Table 5).
            reduction: Channels per hidden unit of the fc operator; the paper does not give it, SE uses 16.
            gate_input: ``"mean"``, m, the paper's; or ``"standardized"``, the mean of the standardized plane,
                ``(m - mean) / sd``. Both express the same gates, but the scale of m is that of the features: in trained
                networks its mean square can be hundreds, and so many times as fast do gates move as other weights.
                g_hat is called ``standardized_gate_weight`` then, so that no checkpoint of the other is taken for it.
            over: Another method that standardizes in place of batch normalization: its name, such as ``"sn"``, or
                ``{"method": "gn", "groups": 8}``. The equation stays, with all of that method (without gamma and beta)
                for its standardized feature; neither paper does this.
            noise: The constant noise attack (N_a, N_b) (Eq. 11): x^ becomes ``x^ * N_a + N_b``.

        >>> import torch, calibnorm as cn
        >>> layer = cn.IEBN2d(16)
        >>> layer(torch.randn(8, 16, 4, 4)).shape
        torch.Size([8, 16, 4, 4])
        >>> [(name, tuple(p.shape)) for name, p in layer.named_parameters()]
        [('gate_weight', (16,)), ('gate_bias', (16,)), ('bn.weight', (16,)), ('bn.bias', (16,))]
        """
        super().__init__(*args, **options)


class IEBN1d(_IEBN, dims=1):
    """Instance Enhancement Batch Normalization of (N, C) or (N, C, L)."""


class IEBN2d(_IEBN, dims=2):
    """Instance Enhancement Batch Normalization of (N, C, H, W)."""


class IEBN3d(_IEBN, dims=3):
    """Instance Enhancement Batch Normalization of (N, C, D, H, W)."""
