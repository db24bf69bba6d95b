"""DenseNet-BC (Huang et al., CVPR 2017, arXiv 1608.06993), for images of 32x32 pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from calibnorm.bench.networks import initialize

BOTTLENECK = 4
"""Channels between a layer's two convolutions, in units of what the layer adds."""


class DenseLayer(nn.Module):
    """Norm, ReLU, 1x1 convolution, norm, ReLU, 3x3 convolution; what comes out is put beside what came in."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, BOTTLENECK * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(BOTTLENECK * growth)
        self.conv2 = nn.Conv2d(BOTTLENECK * growth, growth, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return x with the layer's channels behind its own."""
        y = self.conv1(self.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(self.relu(self.norm2(y)))], 1)


class DenseNet(nn.Module):
    """A 3x3 convolution to twice the growth, three dense blocks, and between them transitions that halve all sizes.

    Args:
        layers: Layers of each block; the depth is 6 times that and 4.
        growth: Channels that a layer adds.
        classes: Outputs.
        in_channels: Channels of the images.
    """

    def __init__(self, layers: int, growth: int, classes: int, in_channels: int = 3) -> None:
        super().__init__()
        first, more = 2 * growth, layers * growth
        second = (first + more) // 2
        third = (second + more) // 2
        self.conv = nn.Conv2d(in_channels, first, 3, padding=1, bias=False)
        self.denseblock1 = dense_block(first, growth, layers)
        self.transition1 = transition(first + more, second)
        self.denseblock2 = dense_block(second, growth, layers)
        self.transition2 = transition(second + more, third)
        self.denseblock3 = dense_block(third, growth, layers)
        self.norm = nn.BatchNorm2d(third + more)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(third + more, classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = self.transition1(self.denseblock1(self.conv(x)))
        x = self.denseblock3(self.transition2(self.denseblock2(x)))
        logits: Tensor = self.fc(self.relu(self.norm(x)).mean((2, 3)))
        return logits


def dense_block(inputs: int, growth: int, layers: int) -> nn.Sequential:
    """Return layers each of which takes what all before it put out."""
    return nn.Sequential(*(DenseLayer(inputs + layer * growth, growth) for layer in range(layers)))


def transition(inputs: int, outputs: int) -> nn.Sequential:
    """Return norm, ReLU, 1x1 convolution and average of two by two pixels."""
    convolution = nn.Conv2d(inputs, outputs, 1, bias=False)
    return nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), convolution, nn.AvgPool2d(2))
