"""BatchNorm into the convolution before it, and what is left, by name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import calibnorm as cn
from cases import randn
from conversion.helpers import MODELS, convert, norms, output, relative, settle, small


@torch.no_grad()
def test_a_whole_network() -> None:
    """torch.fx cannot follow the forward that calls the first norm of torchvision's backbones."""
    factory, shape, count = MODELS["FrozenBatchNorm2d"]
    left = ["body.bn1"]
    torch.manual_seed(0)
    net, x = settle(factory(), shape).double(), randn(4, 3, 32, 32, seed=5, dtype=torch.float64)
    convert(net, "iebn", preserve=True)
    expected, texts = output(net, x), list[str]()
    cn.fold(net, x, tolerance=0, into_convolutions=True, report=texts.append)
    assert list(norms(net)) == left
    assert f"{count} normalizations: {count - len(left)} folded into the convolution before" in texts[0]
    assert relative(output(net, x), expected) <= 1e-10
    assert "body.bn1: left, the forward of body (IntermediateLayerGetter) " in texts[0]


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_convolutions_of_every_rank(dims: int, transposed: bool) -> None:
    kind = getattr(nn, f"Conv{'Transpose' * transposed}{dims}d")
    batchnorm = getattr(nn, f"BatchNorm{dims}d")
    net = settle(nn.Sequential(kind(3, 4, 2, bias=False), batchnorm(4, affine=False)).double(), (8, 3, *[4] * dims))
    x = randn(8, 3, *[4] * dims, seed=5, dtype=torch.float64)
    expected = net(x)
    cn.fold(net, x, into_convolutions=True)
    assert [type(module) for module in net] == [kind, nn.Identity]
    assert relative(net(x), expected) <= 1e-10


class Odd(nn.Module):
    """A forward for every reason to leave a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.used_twice = nn.Conv2d(3, 3, 1)
        self.a = nn.BatchNorm2d(3)
        self.called_twice = nn.Conv2d(3, 3, 1)
        self.b = nn.BatchNorm2d(3)
        self.pruned = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1))
        self.c = nn.BatchNorm2d(3)
        self.d = nn.BatchNorm2d(3)
        self.transposed = nn.ConvTranspose2d(3, 3, 1)
        self.e = nn.BatchNorm2d(3)
        self.grouped = nn.ConvTranspose2d(3, 3, 1, groups=3)
        self.f = nn.BatchNorm2d(3)
        self.hooked = nn.Conv2d(3, 3, 1)
        self.g = nn.BatchNorm2d(3)
        self.tied, self.other = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.other.weight = self.tied.weight
        self.h = nn.BatchNorm2d(3)
        self.no_statistics = nn.Conv2d(3, 3, 1)
        self.i = nn.BatchNorm2d(3, track_running_stats=False)
        self.twice = nn.BatchNorm2d(3)
        self.looks = nn.Conv2d(3, 3, 1)
        self.j = cn.IEBN2d(3, init=(2.0, 0.0))
        self.branching = Branching()
        self.unused = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.used_twice(x)
        x = self.a(y) + y
        x = self.b(self.called_twice(self.called_twice(x)))
        x = self.d(self.c(self.pruned(x)))
        x = self.f(self.grouped(self.e(self.transposed(x))))
        x = self.h(self.tied(self.g(self.hooked(x)))) + self.other(x)
        x = self.twice(self.twice(self.i(self.no_statistics(x))))
        return self.branching(self.j(self.looks(x))).mean((2, 3))


class Branching(nn.Module):
    """A forward that torch.fx cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.never = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) if x.sum() > 0 else x


def test_what_stays_is_named() -> None:
    torch.manual_seed(0)
    net: Any = settle(Odd().double(), (8, 3, 4, 4))
    net.hooked.register_forward_hook(lambda *_: None)
    x, texts = randn(8, 3, 4, 4, seed=2, dtype=torch.float64), list[str]()
    expected = net(x)
    cn.fold(net, x, tolerance=0, into_convolutions=True, report=texts.append)
    for name, why in {
        "a": "whose output is used elsewhere",
        "b": "whose output is used elsewhere",
        "c": "computes its weight",
        "d": "does not follow a convolution",
        "f": "follows a ConvTranspose2d with groups",
        "g": "has hooks",
        "h": "shares its weight with another",
        "i": "keeps no running statistics",
        "twice": "is called 2 times",
        "j": "is calibrated",
        "branching.bn": "the forward of branching (Branching) could not be followed",
        "branching.never": "the forward of branching (Branching) could not be followed",
        "unused": "no forward that could be followed calls it",
    }.items():
        assert any(line.startswith(f"{name}: left, ") and why in line for line in texts[0].splitlines()), name
    assert type(net.e) is nn.Identity
    assert relative(net(x), expected) <= 1e-10


def test_activations_stay_behind() -> None:
    torch.manual_seed(0)
    source = nn.Sequential(nn.Conv2d(3, 4, 1), timm.layers.BatchNormAct2d(4, act_layer=nn.SiLU, drop_layer=nn.Dropout))
    net: Any = settle(source.double(), (8, 3, 4, 4))
    x = randn(8, 3, 4, 4, seed=2, dtype=torch.float64)
    expected = net(x)
    cn.fold(net, x, into_convolutions=True)
    assert [type(module) for module in net[1]] == [nn.Dropout, nn.SiLU]
    assert not net[1].training
    assert relative(net(x), expected) <= 1e-10


@torch.no_grad()
def test_half_networks_and_fused_ones() -> None:
    """cn.fuse's forwards go on with what they find; weights of another dtype are rounded once."""
    torch.manual_seed(0)
    net = cn.fuse(convert(small(), "rbn", preserve=True))
    x = randn(8, 3, 5, 5, seed=3, dtype=torch.float32)
    expected = net(x)
    folded = cn.fold(copy.deepcopy(net), x, into_convolutions=True)
    assert relative(folded(x), expected) <= 1e-4
    half = cn.fold(net.bfloat16(), x.bfloat16(), tolerance=None, into_convolutions=True)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert relative(half(x.bfloat16()).float(), expected) <= 0.1
