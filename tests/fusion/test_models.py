"""``cn.fuse`` on networks of torchvision and timm: the same function, gradients and statistics, in the same layers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

import calibnorm as cn
from cases import randn
from conversion.helpers import randomize_gates
from fusion.helpers import assert_same, calls_of, computed, counts, fuse, stir


def tv(name: str, **options: object) -> Callable[[], nn.Module]:
    return lambda: torchvision.models.get_model(name, weights=None, num_classes=5, **options)


def tm(name: str) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=5)


def vgg() -> nn.Module:
    narrow = [width if width == "M" else width // 4 for width in torchvision.models.vgg.cfgs["D"]]
    return torchvision.models.vgg.make_layers(narrow, batch_norm=True)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "resnet18": (tv("resnet18"), (9, 8, 3)),
    "resnet50": (tv("resnet50", width_per_group=16), (33, 16, 4)),
    "resnext": (lambda: ResNet(Bottleneck, [1, 1, 1, 1], 5, groups=32, width_per_group=4), (9, 4, 4)),
    "vgg16_bn": (vgg, (13, 0, 0)),
    "densenet121": (tv("densenet121"), (120, 0, 1)),
    "googlenet": (tv("googlenet", aux_logits=False, init_weights=False), (57, 0, 0)),
    "mobilenet_v2": (tv("mobilenet_v2"), (0, 0, 52)),
    "timm resnet18": (tm("resnet18"), (9, 8, 3)),
    "timm resnet26d": (tm("resnet26d"), (19, 8, 4)),
    "timm regnetx_002": (tm("regnetx_002"), (27, 0, 17)),
    "timm seresnet18": (tm("seresnet18"), (9, 0, 11)),
    "timm efficientnet_b0": (tm("efficientnet_b0"), (0, 0, 49)),
}
"""Factory, and how many norms are fused with a ReLU, with an addition and a ReLU, and left."""


def images(name: str) -> torch.Tensor:
    # At 32 pixels the gradients of the deep and narrow RegNet are as sensitive to rounding as they are large.
    size = 64 if "regnet" in name else 32
    return randn(3, 3, size, size, dtype=torch.float64)


# What these have of blocks, another one has, or the calibrated networks below.
SEEN = ("resnext", "googlenet", "timm resnet18", "timm resnet26d")
PLAIN = [pytest.param(name, marks=pytest.mark.nightly if name in SEEN else []) for name in MODELS]


@pytest.mark.parametrize("name", PLAIN)
def test_the_same_function_gradients_and_statistics(name):
    torch.manual_seed(0)
    make, expected = MODELS[name]
    model, x = stir(make()), images(name)
    keys, modules = list(model.state_dict()), dict(model.named_modules())
    kinds = {module: type(module) for module in model.modules()}
    fusable = sum(expected[:2]) > 0
    before = computed(model, x) if fusable else {}
    assert counts(fuse(model)) == expected
    assert list(model.state_dict()) == keys
    assert dict(model.named_modules()) == modules
    if fusable:
        assert all(isinstance(module, kind) for module, kind in kinds.items())
        assert_same(computed(model, x), before)
    else:
        assert all(type(module) is kind for module, kind in kinds.items())


@pytest.mark.parametrize(
    ("name", "method"),
    [
        pytest.param("resnet18", "bn", marks=pytest.mark.nightly),
        ("resnet18", "iebn"),
        ("resnet18", "rbn"),
        ("timm resnet26d", "rbn"),
        ("vgg16_bn", "iebn"),
        ("timm regnetx_002", "iebn"),
    ],
)
def test_the_same_of_calibrated_layers(name, method, monkeypatch):
    torch.manual_seed(0)
    make, expected = MODELS[name]
    model, x = stir(cn.convert(make(), method)), images(name)
    randomize_gates(model)
    keys, before = list(model.state_dict()), computed(model, x)
    assert counts(fuse(model)) == expected
    assert list(model.state_dict()) == keys
    done = calls_of(monkeypatch)
    assert_same(computed(model, x), before)
    pairs = 0 if name == "timm regnetx_002" else expected[0]  # its layers rectify by themselves
    assert done == 2 * done[: len(done) // 2]  # in training and in eval mode
    assert (
        sorted(with_residual for _, with_residual in done[: len(done) // 2]) == [False] * pairs + [True] * expected[1]
    )
