"""A transformation network on a picture whose features do not fit into memory: layer by layer, strip by strip.

A tile that goes through the whole network by itself would be normalized by its own moments, not by the picture's. So
every layer is run over the whole picture before the next one begins, in two passes: the convolution writes strip after
strip, of whose rows each reads those that it needs of the strips above and below, and the picture's moments are taken
as it goes; then the norm's coefficients, which these moments determine, are applied. Nothing overlaps in the result
and nothing is computed twice. The result is the network's own but for rounding: there is no seam.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from calibnorm.errors import Setting, UsageError
from calibnorm.lab.models.transformation import Residual, Stage, TransformationNetwork
from calibnorm.nn import CalibratedNorm
from calibnorm.ops.reference import moments

Empty = Callable[..., Tensor]
"""Makes a tensor (C, H, W) of float32 with any content."""


def on_disk(*shape: int) -> Tensor:
    """Return a tensor in a file without a name, which the disk frees when the tensor is gone."""
    with tempfile.NamedTemporaryFile(suffix=".features") as file:
        return torch.from_file(file.name, shared=True, size=torch.Size(shape).numel(), dtype=torch.float32).view(shape)


@torch.no_grad()
def in_strips(network: TransformationNetwork, picture: Tensor, rows: int = 64, empty: Empty = torch.empty) -> Tensor:
    """Return what a network in evaluation mode makes of a picture.

    Args:
        network: On the CPU.
        picture: (3, H, W) from 0 to 1.
        rows: Of a strip.
        empty: Where features are kept; two layers' at a time.

    Raises:
        UsageError: A norm looks at single pixels, for which moments are not enough.
    """
    run = _Strips(rows, empty)
    high, wide = picture.shape[1:]
    x = network.pad(2 * picture[None] - 1)[0]
    for stage in network.down:
        x = run.stage(stage, x)
    for block in network.blocks:
        x = run.residual(block, x)
    x = run.stage(network.up[0], x, (high + 1) // 2, (wide + 1) // 2)
    x = run.stage(network.up[1], x, high, wide)
    return run.convolved(network.last, x).tanh_().mul_(0.5).add_(0.5)


class _Strips:
    """Runs layers over features (C, H, W).

    Args:
        rows: Of a strip.
        empty: Where features are kept.
    """

    def __init__(self, rows: int, empty: Empty) -> None:
        self.rows, self.empty = rows, empty

    def strips(self, high: int) -> Iterator[tuple[int, int]]:
        """Yield the first row of every strip, and the one behind its last."""
        return ((top, min(high, top + self.rows)) for top in range(0, high, self.rows))

    def stage(self, stage: Any, x: Tensor, high: int | None = None, wide: int | None = None) -> Tensor:
        """Return what a stage makes of features, cut to a size."""
        assert isinstance(stage, Stage)
        return self.normalized(stage.norm, self.convolved(stage.conv, x, high, wide)).relu_()

    def residual(self, block: Any, x: Tensor) -> Tensor:
        """Return what a residual block makes of features."""
        assert isinstance(block, Residual)
        y = self.normalized(block.norm1, self.convolved(block.conv1, x)).relu_()
        return self.normalized(block.norm2, self.convolved(block.conv2, y)).add_(block.trimmed(x[None])[0])

    def convolved(self, layer: nn.Module, x: Tensor, high: int | None = None, wide: int | None = None) -> Tensor:
        """Return what a convolution makes of features, cut to a size."""
        full = rows_after(layer, x.shape[1])
        y: Tensor | None = None
        for top, bottom in self.strips(full if high is None else high):
            part = strip(layer, x, top, bottom)[:, :, :wide]
            y = self.empty(len(part), full if high is None else high, part.shape[2]) if y is None else y
            y[:, top:bottom] = part
        assert y is not None
        return y

    def normalized(self, norm: nn.Module, y: Tensor) -> Tensor:
        """Return features after a norm, in their own memory, by the moments of all of their strips."""
        mean, squares, count = torch.zeros(len(y), dtype=torch.float64), torch.zeros(len(y), dtype=torch.float64), 0
        for top, bottom in self.strips(y.shape[1]):  # merged as Chan, Golub and LeVeque (1979) do
            ((m,), (v,)), n = moments(y[None, :, top:bottom]), (bottom - top) * y.shape[2]
            apart, count = m - mean, count + n
            squares += n * v + apart.square() * ((count - n) * n / count)
            mean += apart * (n / count)
        scale, shift = coefficients(norm, mean, squares / count)
        centre = mean.float()
        shift = shift - scale * (mean - centre)
        for top, bottom in self.strips(y.shape[1]):
            part = y[:, top:bottom]
            part.sub_(centre[:, None, None]).mul_(scale.float()[:, None, None]).add_(shift.float()[:, None, None])
        return y


def coefficients(norm: nn.Module, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale and shift, (C,) in float64, with which a norm makes ``scale * (x - mean) + shift`` of a picture.

    The norm itself says so: it is given a plane of two pixels a channel that has just these moments.

    Args:
        norm: In evaluation mode.
        mean: The picture's mean of every channel, (C,).
        var: Its biased variance.

    Raises:
        UsageError: It looks at single pixels.
    """
    if isinstance(norm, CalibratedNorm) and norm.method.spatial:
        reason = f"{norm.method} looks at single pixels, which moments of strips do not tell; give the picture more "
        raise UsageError("a picture this large: ", reason, Setting("memory"))
    std = var.sqrt()
    low, high = copy.deepcopy(norm).double()(torch.stack([mean - std, mean + std], 1)[None, :, None])[0, :, 0].unbind(1)
    flat = std == 0
    return ((high - low) / (2 * std.masked_fill(flat, 1))).masked_fill(flat, 0), (low + high) / 2


def rows_after(layer: nn.Module, rows: int) -> int:
    """Return how many rows a convolution makes of so many."""
    if isinstance(layer, nn.Sequential | nn.ConvTranspose2d):
        return 2 * rows
    assert isinstance(layer, nn.Conv2d)
    return int((rows + 2 * layer.padding[0] - layer.kernel_size[0]) // layer.stride[0]) + 1  # type: ignore[operator]


def strip(layer: nn.Module, x: Tensor, top: int, bottom: int) -> Tensor:
    """Return the rows from ``top`` to ``bottom`` of what a convolution makes of features."""
    if isinstance(layer, nn.ConvTranspose2d):  # of 3x3 with stride 2: row 2 i - 1 + k has the input's row i
        first, last = max(0, top // 2 - 1), min(x.shape[1], bottom // 2 + 1)
        part = x[None, :, first:last]
        y = F.conv_transpose2d(part, layer.weight, layer.bias, 2, padding=(0, 1), output_padding=(0, 1))
        return y[0, :, top + 1 - 2 * first : bottom + 1 - 2 * first]
    factor, conv = (2, layer[1]) if isinstance(layer, nn.Sequential) else (1, layer)
    assert isinstance(conv, nn.Conv2d)
    pad, stride, high = int(conv.padding[0]), conv.stride[0], factor * x.shape[1]
    rows = torch.arange(top * stride - pad, (bottom - 1) * stride - pad + conv.kernel_size[0])
    inside = rows.clamp(0, high - 1)
    reflects = conv.padding_mode == "reflect"
    seen = high - 1 - (rows.abs() - (high - 1)).abs() if reflects else inside
    part = x[:, seen // factor].repeat_interleave(factor, 2)
    if not reflects:
        part[:, rows != inside] = 0
    padded = F.pad(part[None], (pad, pad, 0, 0), mode="reflect" if reflects else "constant")
    return F.conv2d(padded, conv.weight, conv.bias, conv.stride)[0]
