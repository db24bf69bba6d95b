"""Batch normalization as a layer of this library: the baseline, with the constant noise attack and a gamma control."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from calibnorm._checks import Noise
from calibnorm.methods import BN
from calibnorm.nn.layer import CalibratedNorm
from calibnorm.nn.options import checked


class _BN(CalibratedNorm):
    method_type = BN
    method: BN

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
        gamma_init: float = 1.0,
        noise: Noise | None = None,
        noise_in: str = "always",
        act: str | None = None,
    ) -> None:
        if not affine and gamma_init != 1.0:
            raise ValueError(f"gamma_init={gamma_init} needs gamma, which affine=False does not have; use affine=True")
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
            gamma_init=gamma_init,
        )
        self._fill_gamma()

    def reset_parameters(self) -> None:
        """Set gamma to ``gamma_init``, beta to 0 and the running statistics to their initial values."""
        super().reset_parameters()
        self._fill_gamma()

    def _fill_gamma(self) -> None:
        if self.weight is not None and self.method.gamma_init != 1.0:
            nn.init.constant_(self.weight, self.method.gamma_init)


class BN1d(_BN):
    """:class:`BN2d` for input (N, C) or (N, C, L).

    >>> import torch, calibnorm as cn
    >>> cn.BN1d(8)(torch.randn(4, 8, 5)).shape
    torch.Size([4, 8, 5])
    """

    dims: ClassVar[int] = 1


class BN2d(_BN):
    r"""Batch normalization (Ioffe and Szegedy, 2015), through this library's kernels.

    :math:`y = \gamma (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta`. The same function as ``nn.BatchNorm2d``, with
    the IEBN paper's constant noise attack and an initial gamma as options, so that a baseline meets the conditions of
    the methods it is compared with.

    Args:
        num_features: Channels C of the input (N, C, H, W).
        eps: Added to the variance.
        momentum: Weight of a batch in the running statistics; None averages over all batches.
        affine: Learn gamma and beta.
        track_running_stats: Keep running statistics for eval.
        device: Where the parameters live.
        dtype: Dtype of the parameters.
        gamma_init: Initial gamma. Networks' own initialization may reset it to 1: ``cn.convert`` applies it after that.
        noise: The constant noise attack (N_a, N_b): the standardized x^ becomes ``x^ * N_a + N_b``.
        noise_in: ``"always"``, or ``"train"`` for training mode of the layer (not of its ``bn``) alone.
            The paper does not say which it used.
        act: ``"relu"`` applies a ReLU to the output (after the residual, if forward gets one).

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range.

    >>> import torch, calibnorm as cn
    >>> cn.BN2d(16, noise=(0.5, 0.2))(torch.randn(8, 16, 4, 4)).shape
    torch.Size([8, 16, 4, 4])
    """

    dims: ClassVar[int] = 2


class BN3d(_BN):
    """:class:`BN2d` for input (N, C, D, H, W).

    >>> import torch, calibnorm as cn
    >>> cn.BN3d(8)(torch.randn(2, 8, 3, 4, 5)).shape
    torch.Size([2, 8, 3, 4, 5])
    """

    dims: ClassVar[int] = 3
