"""ILM: Jia et al., CVPR 2019, over group normalization, pixel by pixel."""

from __future__ import annotations

import torch
from torch import Tensor

from oracles import Tensors, gamma_beta
from oracles.group import gn


def ilm(x: Tensor, p: Tensors, groups: int, keys: int, eps: float) -> Tensor:
    """Each key group's variance predicts its scale and its mean its shift."""
    flat = x.reshape(x.shape[0], keys, -1)
    mean = flat.mean(-1)
    var = ((flat - mean[:, :, None]) ** 2).mean(-1)
    scale = (var @ p["encoder_weight"].T).clamp(min=0) @ p["scale_decoder_weight"].T
    shift = (mean @ p["encoder_weight"].T).clamp(min=0) @ p["shift_decoder_weight"].T

    def planes(t: Tensor) -> Tensor:
        t = t.repeat_interleave(x.shape[1] // keys, 1)
        return t.view(*t.shape, *[1] * (x.ndim - 2))

    weight, bias = gamma_beta(p, x)
    omega = weight + planes(1 / (1 + torch.exp(-scale)))
    beta = bias + planes((torch.exp(shift) - torch.exp(-shift)) / (torch.exp(shift) + torch.exp(-shift)))
    return gn(x, {}, groups, eps) * omega + beta
