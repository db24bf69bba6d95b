"""What the layer bench measures: shapes, layouts, dtypes, operations and modes, and the presets' choice of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch

from calibnorm.errors import Setting, UsageError

Shape = tuple[int, int, int, int]
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OPS = ("norm", "norm+relu", "norm+add+relu")
MODES = ("forward", "forward+backward", "eval")
"""Forward is training mode without gradients; eval too is without gradients, with the running statistics."""

# Tensors of the input's size that the leanest implementation of (op, mode) reads or writes (design: 3 forward, 5
# backward; a ReLU costs nothing, a residual is read once and its gradient written once). gb_per_s divides them by the
# time: the useful bandwidth, comparable between implementations that move more.
PASSES = {
    (op, mode): passes
    for op, by_mode in zip(OPS, ((3, 8, 2), (3, 8, 2), (4, 10, 3)), strict=True)
    for mode, passes in zip(MODES, by_mode, strict=True)
}

# (C, H = W) of every norm layer of torchvision's ResNet-50 at 224x224, and of ResNet-164 (bottleneck) at 32x32.
RESNET50 = (
    (64, 112), (64, 56), (256, 56), (128, 56), (128, 28), (512, 28),
    (256, 28), (256, 14), (1024, 14), (512, 14), (512, 7), (2048, 7),
)  # fmt: skip
RESNET164 = ((16, 32), (64, 32), (32, 16), (128, 16), (64, 8), (256, 8))
TINY = ((64, 512, 7), (128, 256, 4), (32, 512, 4), (128, 512, 1), (32, 2048, 1))  # (N, C, H = W)
QUICK = ("128x16x32x32", "8x64x56x56", "32x512x7x7", "32x256x4x4")
COMPILED = ("8x256x56x56", "128x64x32x32", "32x512x7x7")
"""The shapes at which the preset full measures torch.compile too, in float32."""

PLANES = ("14x14 and larger", "7x7 to 13x13", "smaller than 7x7")


@dataclass(frozen=True)
class Case:
    """One line of the plan: every implementation is measured on it in turns."""

    op: str
    mode: str
    shape: Shape
    dtype: str
    layout: str

    @property
    def gigabytes(self) -> float:
        """What the leanest implementation moves."""
        return PASSES[self.op, self.mode] * prod(self.shape) * DTYPES[self.dtype].itemsize / 1e9

    def __str__(self) -> str:
        return f"{self.op} {self.mode} {shape_name(self.shape)} {self.dtype} {self.layout}"


def shape_name(shape: tuple[int, ...]) -> str:
    """Return a shape as tables and options write it."""
    return "x".join(map(str, shape))


def parse_shape(text: str) -> Shape:
    """Return N, C, H, W.

    Raises:
        UsageError: The text is no such shape, or has one value a channel, which training cannot normalize.
    """
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){3}", text):
        groups = ", ".join(shape_groups("cpu"))
        raise UsageError(Setting("shapes", text), f"must be NxCxHxW, such as 32x64x56x56, or one of {groups}")
    n, c, h, w = map(int, text.split("x"))
    if n * h * w == 1:
        raise UsageError(Setting("shapes", text), "one value a channel has no variance; take a larger batch")
    return n, c, h, w


def shape_groups(device_type: str) -> dict[str, list[Shape]]:
    """Return the shapes that names stand for; a GPU is not busy with eight images."""
    batches = (64, 256) if device_type == "cuda" else (8, 32)
    return {
        "resnet50": [(n, c, s, s) for n in batches for c, s in RESNET50],
        "resnet164": [(128, c, s, s) for c, s in RESNET164],
        "tiny": [(n, c, s, s) for n, c, s in TINY],
    }


def parse_shapes(texts: tuple[str, ...], device_type: str) -> list[Shape]:
    """Return the shapes that texts and names of groups stand for, each once, in their order."""
    groups = shape_groups(device_type)
    return list(dict.fromkeys(shape for text in texts for shape in groups.get(text) or [parse_shape(text)]))


class Preset(NamedTuple):
    """What is measured where no filter says otherwise; float16 on a GPU alone."""

    shapes: tuple[str, ...]
    dtypes: tuple[str, ...]
    ops: tuple[str, ...]
    compiled: bool


PRESETS = {
    "quick": Preset(QUICK, ("float32", "bfloat16"), ("norm", "norm+relu"), compiled=False),
    "full": Preset(("resnet50", "resnet164", "tiny"), tuple(DTYPES), OPS, compiled=True),
}


def planes(shape: str) -> str:
    """Return the class of a shape by its number of pixels: what the targets distinguish."""
    _, _, h, w = map(int, shape.split("x"))
    return PLANES[0] if h * w >= 14 * 14 else PLANES[1] if h * w >= 7 * 7 else PLANES[2]
