"""The transformation network of fast style transfer (Johnson et al., ECCV 2016, arXiv 1603.08155)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from calibnorm.errors import Setting, UsageError
from calibnorm.lab.models import placing
from calibnorm.lab.models.networks import Network
from calibnorm.lab.models.norms import Norm, parse_norm

Edge = Literal["start", "each"]
Upsampling = Literal["transposed", "nearest"]


class Stage(nn.Module):
    """A convolution, a norm and ReLU.

    Args:
        conv: The convolution; one that enlarges may have a row or a column too many for the picture.
        channels: What it gives.
    """

    def __init__(self, conv: nn.Module, channels: int) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = conv, nn.BatchNorm2d(channels), nn.ReLU()

    def forward(self, x: Tensor, high: int | None = None, wide: int | None = None) -> Tensor:
        """Return what becomes of features, cut to so many rows and columns where these are given."""
        y: Tensor = self.relu(self.norm(self.conv(x)[:, :, :high, :wide]))
        return y


class Residual(nn.Module):
    """Two convolutions of 3x3 with norms, ReLU between them, added to the input, whose edge is cut where theirs is.

    Args:
        channels: Of input and output.
        options: Of the convolutions.
    """

    def __init__(self, channels: int, options: dict[str, Any]) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, channels, 3, **options), nn.BatchNorm2d(channels)
        self.conv2, self.norm2 = nn.Conv2d(channels, channels, 3, **options), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.cut = 0 if options else 2
        """Rows and columns that two convolutions without padding lose on each side."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum; after it there is no ReLU."""
        y: Tensor = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        return y + self.trimmed(x)

    def trimmed(self, x: Tensor) -> Tensor:
        """Return the input with the edge cut that the convolutions lose."""
        return x[:, :, self.cut : -self.cut, self.cut : -self.cut] if self.cut else x


class TransformationNetwork(nn.Module):
    """Pictures (N, 3, H, W) from 0 to 1 become pictures of the same size in a style.

    As published (supplementary material, Table 1): the picture is padded by reflection, by 40 pixels for five residual
    blocks; a convolution of 9x9 and two of 3x3 with stride 2 lead to a quarter of the size; the blocks' convolutions
    are not padded, and their shortcuts are cut accordingly; two transposed convolutions of 3x3 and one of 9x9 lead
    back, and tanh, scaled to what a picture can be, ends it. All convolutions but the last have a norm. Ours: a size
    that is no multiple of four is kept, by cutting off the row or column too many after each transposed convolution.

    Args:
        width: Channels of the first stage; the blocks have four times as many.
        blocks: Residual blocks.
        edge: "start" pads as published; "each" pads by reflection before each convolution, as many do today, which at
            96 pixels takes a third of the time.
        upsampling: "transposed" convolutions as published, or "nearest": pixels doubled, then a convolution, which
            leaves no checkerboard (Odena et al., Distill 2016).

    >>> net = TransformationNetwork(width=4, blocks=1, edge="each", upsampling="nearest")
    >>> net(torch.rand(2, 3, 21, 18)).shape
    torch.Size([2, 3, 21, 18])
    """

    def __init__(
        self, width: int = 32, blocks: int = 5, edge: Edge = "start", upsampling: Upsampling = "transposed"
    ) -> None:
        super().__init__()
        reflect = {"padding_mode": "reflect"} if edge == "each" else {}
        within: dict[str, Any] = {"padding": 1, **reflect} if reflect else {}

        def conv(*shape: int) -> nn.Module:
            return nn.Conv2d(*shape, padding=shape[2] // 2, **reflect)  # type: ignore[misc, arg-type]

        def enlarging(before: int, after: int) -> nn.Module:
            if upsampling == "nearest":
                return nn.Sequential(nn.Upsample(scale_factor=2), conv(before, after, 3))
            return nn.ConvTranspose2d(before, after, 3, 2, padding=1, output_padding=1)

        middle, deep = 2 * width, 4 * width
        self.pad = nn.ReflectionPad2d(0 if reflect else 8 * blocks)
        self.smallest = 5 if reflect else 8 * blocks + 1
        """Pixels a side that a picture must have: an edge cannot be reflected further than the picture goes."""
        shapes = ((3, width, 9), (width, middle, 3, 2), (middle, deep, 3, 2))
        self.down = nn.ModuleList(Stage(conv(*shape), shape[1]) for shape in shapes)
        self.blocks = nn.Sequential(*(Residual(deep, within) for _ in range(blocks)))
        self.up = nn.ModuleList([Stage(enlarging(deep, middle), middle), Stage(enlarging(middle, width), width)])
        self.width, self.last = width, conv(width, 3, 9)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the pictures in the style, from 0 to 1."""
        high, wide = pictures.shape[2], pictures.shape[3]
        x = self.pad(2 * pictures - 1)
        for stage in self.down:
            x = stage(x)
        x = self.blocks(x)
        x = self.up[0](x, (high + 1) // 2, (wide + 1) // 2)
        x = self.up[1](x, high, wide)
        return 0.5 * torch.tanh(self.last(x)) + 0.5


def transformation(
    norm: str | Norm, noise: tuple[float, float] | None = None, noise_in: str = "always", **shape: Any
) -> nn.Module:
    """Return a transformation network with random weights from torch's global generator and a norm.

    SE goes behind the last BatchNorm of every residual block, as in the classification networks; the IEBN paper says
    only that the SE module is added "to the transformation network with BN".

    Args:
        norm: As :func:`calibnorm.lab.models.build` takes it.
        noise: The constant noise attack, or None.
        noise_in: "always" or "train".
        **shape: Arguments of :class:`TransformationNetwork`.

    Raises:
        UsageError: The norm is not known, or these channels cannot have it.
    """
    network, chosen = TransformationNetwork(**shape), parse_norm(norm)
    of_noise = {} if noise is None else {"noise": noise, "noise_in": noise_in}
    try:
        return placing.place(network, _KNOWN, chosen, None, of_noise)
    except (TypeError, ValueError) as error:
        raise UsageError(Setting("norm", norm), f"the transformation network cannot have it: {error}") from error


_KNOWN = Network(lambda classes, channels: TransformationNetwork(), stages=0)
