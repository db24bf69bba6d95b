"""SE: Hu et al., CVPR 2018, Eq. 2 to 4, pixel by pixel, with the biases of the authors' layers."""

from __future__ import annotations

import torch
from torch import Tensor

from oracles import Pair, Tensors, planes
from oracles.bn import bn


def se(x: Tensor, p: Tensors) -> Tensor:
    """Squeeze, excitation, scale."""
    squeezed = x.mean(planes(x))
    hidden = (squeezed @ p["fc1_weight"].T + p["fc1_bias"]).clamp(min=0)
    excited = 1 / (1 + torch.exp(-(hidden @ p["fc2_weight"].T + p["fc2_bias"])))
    return x * excited.view(*excited.shape, *[1] * (x.ndim - 2))


def bn_se(x: Tensor, p: Tensors, statistics: Pair | None, eps: float) -> Tensor:
    """SE of the output of batch normalization."""
    return se(bn(x, p, statistics, eps=eps)[0], p)
