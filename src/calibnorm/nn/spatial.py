"""RBN's ablation over statistics at a pixel (Table 3): the one thing that no (N, C) coefficient can express.

It is built around the ordinary steps: the centering calibration changes the input before them, the scaling calibration
the standardized feature after them, in plain torch operations. Slower, and said to be so.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from calibnorm._checks import Noise
from calibnorm.methods import RBN
from calibnorm.methods.base import safe_sqrt
from calibnorm.ops import Call, Statistics, Step
from calibnorm.ops import normalize as three_steps
from calibnorm.ops.reference import accumulation_dtype
from calibnorm.ops.synchronized import Synchronized


def normalize(
    x: Tensor,
    method: RBN,
    tensors: Mapping[str, Tensor],
    statistics: Statistics | None,
    eps: float,
    noise: Noise | None,
    synchronized: Synchronized | None = None,
) -> tuple[Tensor, Statistics]:
    """Return y and the statistics of the centre-calibrated feature; arguments as :func:`calibnorm.nn.apply.apply`'s."""
    dtype = accumulation_dtype(x.dtype)

    def wide(name: str) -> Tensor:
        return tensors[name].to(dtype).reshape(-1, *[1] * (x.ndim - 2))

    x_cm = x.to(dtype)
    if method.spatial_center:
        x_cm = x_cm + wide("center_weight") * _over_channels(x_cm, method.center_stat)
    within = method.per_channel()
    names = set(within.parameters(x.shape[1]))
    if not method.spatial_scale:
        names |= {"weight", "bias"}
    inner = {name: tensor for name, tensor in tensors.items() if name in names}
    step = Step(within, tuple(inner), eps, noise, synchronized)
    y, used = three_steps(x_cm, Call(step, statistics, tuple(inner.values())))
    if method.spatial_scale:
        k_s = _over_channels(y, method.scale_stat)
        y = y * method.restricted(wide("scale_weight") * k_s + wide("scale_bias"))
        if "weight" in tensors:
            y = y * wide("weight")
        if "bias" in tensors:
            y = y + wide("bias")
    return y.to(x.dtype), used


def _over_channels(x: Tensor, statistic: str) -> Tensor:
    """Return the mean or the biased standard deviation over channels at every pixel, (N, 1, *spatial)."""
    mean = x.mean(1, keepdim=True)
    if statistic == "spatial_mean":
        return mean
    return safe_sqrt(torch.square(x - mean).mean(1, keepdim=True))
