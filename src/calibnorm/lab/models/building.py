"""`build`: a network by name, made with BatchNorm and then converted."""

from __future__ import annotations

import re

from torch import nn

import calibnorm as cn
from calibnorm.lab.errors import UsageError
from calibnorm.lab.models.norms import Norm, parse_norm
from calibnorm.lab.models.resnet import ResNet

Noise = tuple[float, float]
ALL = "all"
_RESNET = re.compile(r"resnet(\d+)")


def names() -> tuple[str, ...]:
    """Return the named networks; :func:`build` takes ``resnet{9n+2}`` too."""
    return ("resnet164",)


def build(
    name: str,
    *,
    num_classes: int,
    norm: str | Norm = "bn",
    noise: Noise | None = None,
    noise_in: str = "always",
    stages: str = ALL,
    in_channels: int = 3,
) -> nn.Module:
    """Return a network with random weights from torch's global generator and the normalization asked for.

    The network is made with ``nn.BatchNorm2d`` and then converted, so that all norms of a seed start from the same
    weights.

    Args:
        name: One of :func:`names`, or ``resnet{9n+2}``.
        num_classes: Outputs.
        norm: A :class:`Norm` or its text, such as ``"iebn:init=(0,1)"``; ``"bn"`` leaves ``nn.BatchNorm2d``.
        noise: The IEBN paper's constant noise attack (N_a, N_b) on every BatchNorm, converted or not.
        noise_in: ``"always"``, or ``"train"`` for training alone.
        stages: ``"all"``, or the one stage to convert, such as ``"stage1"``.
        in_channels: Of the images.

    Raises:
        UsageError: One of these cannot be; the text names it, what came, and what can be.
    """
    for option, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(f"{option} {value!r}: must be a whole number of at least 1")
    norm = parse_norm(norm)
    match = _RESNET.fullmatch(name) if isinstance(name, str) else None
    if match is None or (int(match[1]) - 2) % 9 or int(match[1]) < 11:
        raise UsageError(f"model {name}: is not known; choose from {', '.join(names())}, or resnet{{9n+2}}")
    numbers = None
    if stages != ALL:
        if stages not in ("stage1", "stage2", "stage3"):
            raise UsageError(f"stages {stages}: is not known; choose from all, stage1, stage2, stage3")
        numbers = int(stages.removeprefix("stage"))
    depth = (int(match[1]) - 2) // 9
    model: nn.Module = ResNet((depth,) * 3, 16, num_classes, in_channels)
    if noise is None and norm == Norm("bn"):
        return model
    try:
        return cn.convert(model, norm.method, stages=numbers, noise=noise, noise_in=noise_in, **norm.options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"norm {norm}: {error}") from None
