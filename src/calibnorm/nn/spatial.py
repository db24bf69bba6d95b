"""Statistics over the channels at a pixel: the one thing that no (N, C) coefficient can express.

They stand around the ordinary steps: a method changes the input before them and the standardized feature after them, in
plain torch operations. Slower, and said to be so.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from calibnorm._checks import Noise
from calibnorm.methods import Method
from calibnorm.ops import Call, Statistics, Step
from calibnorm.ops import normalize as three_steps
from calibnorm.ops.reference import accumulation_dtype
from calibnorm.ops.synchronized import Synchronized


def normalize(
    x: Tensor,
    method: Method,
    tensors: Mapping[str, Tensor],
    statistics: Statistics | None,
    eps: float,
    noise: Noise | None,
    synchronized: Synchronized | None = None,
) -> tuple[Tensor, Statistics]:
    """Return y and the statistics of what the steps normalize; arguments as :func:`calibnorm.nn.apply.apply`'s."""
    dtype = accumulation_dtype(x.dtype)
    pixels = [1] * (x.ndim - 2)
    around = {name: t.to(dtype).reshape(-1, *pixels) for name, t in tensors.items() if name in method.spatial}
    within = {name: t for name, t in tensors.items() if name not in method.spatial}
    step = Step(method.without_spatial(), tuple(within), eps, noise, synchronized)
    y, used = three_steps(method.before_steps(x.to(dtype), around), Call(step, statistics, tuple(within.values())))
    return method.after_steps(y, around).to(x.dtype), used
