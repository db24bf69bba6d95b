"""ResNets of bottleneck blocks (He et al., CVPR 2016, arXiv 1512.03385), for images of 32x32 and of 224x224 pixels.

ResNet-164 is the network of the IEBN paper's CIFAR tables; with ImageNet's stem and depths it is torchvision's, names
included.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions, each with its norm, and the shortcut around them; the 3x3 one has the stride."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if inputs != outputs or stride != 1:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(x + branch(x)), x projected where its shape is another."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += shortcut
        out: Tensor = self.relu(y)
        return out


class ResNet(nn.Module):
    """A stem, stages of bottleneck blocks whose width doubles and whose planes halve, and a linear classifier.

    Args:
        depths: Blocks of each stage.
        width: Of the first stage's 3x3 convolutions, and of the stem.
        classes: Outputs.
        in_channels: Of the images.
        large: Whether the stem is ImageNet's, 7x7 of stride 2 and a maximum of stride 2, instead of CIFAR's 3x3.
    """

    def __init__(
        self, depths: tuple[int, ...], width: int, classes: int, in_channels: int = 3, large: bool = False
    ) -> None:
        super().__init__()
        kernel, stride, padding = (7, 2, 3) if large else (3, 1, 1)
        self.conv1 = nn.Conv2d(in_channels, width, kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if large else nn.Identity()
        stages = [f"layer{number}" for number in range(1, len(depths) + 1)]
        inputs = width
        for number, (stage, depth) in enumerate(zip(stages, depths, strict=True)):
            self.add_module(stage, nn.Sequential(*blocks(inputs, width << number, depth, 1 if number == 0 else 2)))
            inputs = EXPANSION * (width << number)
        self.stages = tuple(stages)
        self.fc = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in self.stages:
            x = getattr(self, stage)(x)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def blocks(inputs: int, width: int, depth: int, stride: int) -> Iterator[Bottleneck]:
    """Yield the blocks of a stage; the first has its stride."""
    for number in range(depth):
        yield Bottleneck(inputs if number == 0 else EXPANSION * width, width, stride if number == 0 else 1)
