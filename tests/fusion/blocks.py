"""A stem and two residual blocks, fused or not, which many tests of fusing begin with."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock

import calibnorm as cn
from cases import randn
from conversion.helpers import randomize_gates
from fusion.helpers import fuse, stir

each_kind = pytest.mark.parametrize("kind", ["plain", "rbn"])


def x64(*shape: int, seed: int = 5) -> torch.Tensor:
    return randn(*(shape or (4, 3, 12, 12)), seed=seed, dtype=torch.float64)


def network(kind: str = "plain", *, fused: bool = True) -> nn.Module:
    """A stem as a Sequential, and two residual blocks of torchvision, one with a convolution as its shortcut."""
    torch.manual_seed(0)
    shortcut = nn.Sequential(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6))
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
        BasicBlock(4, 4),
        BasicBlock(4, 6, downsample=shortcut),
    )
    if kind != "plain":
        cn.convert(model, kind)
        randomize_gates(model)
    stir(model)
    if fused:
        assert sum(row.startswith("fused") for row in fuse(model).values()) == 5
    return model
