"""BCN: Qiao et al., arXiv 1903.10520: batch normalization, then group normalization of its output, pixel by pixel."""

from __future__ import annotations

from torch import Tensor

from oracles import Pair, Tensors, channels
from oracles.bn import bn
from oracles.group import gn


def bcn(x: Tensor, p: Tensors, statistics: Pair | None, groups: int, eps: float) -> Tensor:
    """Both steps with their affine maps, the second's repeated over the channels of a group."""
    z, _ = bn(x, p, statistics, eps=eps)
    repeats = x.shape[1] // p["channel_weight"].numel()
    weight, bias = (channels(p[name].repeat_interleave(repeats), x) for name in ("channel_weight", "channel_bias"))
    return gn(z, {}, groups, eps) * weight + bias
