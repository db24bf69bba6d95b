"""Instance Enhancement Batch Normalization as layers."""

from __future__ import annotations

from typing import ClassVar

import torch

from calibnorm._checks import Noise
from calibnorm.methods import IEBN
from calibnorm.methods.registry import Over
from calibnorm.nn.layer import CalibratedNorm
from calibnorm.nn.options import checked


class _IEBN(CalibratedNorm):
    method_type = IEBN

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
        operator: str = "linear",
        position: str = "gamma",
        activation: str = "sigmoid",
        init: tuple[float, float] = (0.0, -1.0),
        reduction: int = 16,
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
            operator=operator,
            position=position,
            activation=activation,
            init=init,
            reduction=reduction,
            over=over,
        )


class IEBN1d(_IEBN):
    """:class:`IEBN2d` for input (N, C) or (N, C, L).

    >>> import torch, calibnorm as cn
    >>> cn.IEBN1d(8)(torch.randn(4, 8)).shape
    torch.Size([4, 8])
    """

    dims: ClassVar[int] = 1


class IEBN2d(_IEBN):
    r"""Instance Enhancement Batch Normalization (Liang et al., AAAI 2020, Algorithm 1 of arXiv 1908.04008v2).

    :math:`y = \hat x\,(\gamma\,\delta) + \beta,\quad \delta = \sigma(\hat g\, m + \hat b)`, where x^ is the
    input standardized as in batch normalization and m, (N, C), the mean of every plane of the input (Eq. 3, 8 and 9).

    Learnable: ``gate_weight`` (g_hat) and ``gate_bias`` (b_hat), (C,), beside gamma and beta in the child ``bn``;
    ``fc1_weight``, ``fc1_bias``, ``fc2_weight``, ``fc2_bias`` with ``operator="fc"``.

    Args:
        num_features: Channels C of the input (N, C, H, W).
        eps: Added to the variance.
        momentum: Weight of a batch in the running statistics; None averages over all batches.
        affine: Learn gamma and beta.
        track_running_stats: Keep running statistics for eval.
        device: Where the parameters live.
        dtype: Dtype of the parameters.
        operator: ``"linear"``; ``"identity"``, sigmoid(m) without parameters; ``"fc"``, two layers over all channels
            (Table 4).
        position: What the gate multiplies: ``"gamma"``, ``"beta"`` or ``"both"`` (Table 4).
        activation: ``"sigmoid"``, ``"tanh"``, ``"relu"`` or ``"softmax"`` over channels (Fig. 4).
        init: Initial g_hat and b_hat (Table 5).
        reduction: Channels per hidden unit of the fc operator; the paper does not give it, SE uses 16.
        over: Another method that standardizes in place of batch normalization: its name, such as ``"sn"``, or
            ``{"method": "gn", "groups": 8}``. The equation stays, with all of that method (without gamma and beta) for
            its standardized feature; neither paper does this.
        noise: The constant noise attack (N_a, N_b) (Eq. 11): x^ becomes ``x^ * N_a + N_b``.
        noise_in: ``"always"``, or ``"train"`` for training mode of the layer (not of its ``bn``) alone.
            The paper does not say which it used.
        act: ``"relu"`` applies a ReLU to the output (after the residual, if forward gets one).

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range, or options contradict each other.

    Statistics and gates are computed in float32 or wider; the output has the input's dtype.

    >>> import torch, calibnorm as cn
    >>> layer = cn.IEBN2d(16)
    >>> layer(torch.randn(8, 16, 4, 4)).shape
    torch.Size([8, 16, 4, 4])
    >>> [(name, tuple(p.shape)) for name, p in layer.named_parameters()]
    [('gate_weight', (16,)), ('gate_bias', (16,)), ('bn.weight', (16,)), ('bn.bias', (16,))]
    """

    dims: ClassVar[int] = 2


class IEBN3d(_IEBN):
    """:class:`IEBN2d` for input (N, C, D, H, W).

    >>> import torch, calibnorm as cn
    >>> cn.IEBN3d(8)(torch.randn(2, 8, 3, 4, 5)).shape
    torch.Size([2, 8, 3, 4, 5])
    """

    dims: ClassVar[int] = 3
