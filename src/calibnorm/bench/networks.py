"""ResNets and ResNeXts of bottleneck blocks, for images of 32x32 and of 224x224 pixels, of torch alone.

ResNet (He et al., CVPR 2016, arXiv 1512.03385) with 164 layers is the network of the IEBN paper's CIFAR tables; ResNeXt
is Xie et al., CVPR 2017, arXiv 1611.05431. With ImageNet's stem and depths they are torchvision's, names included.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions, each with its norm, and the shortcut around them; the 3x3 one has the stride.

    Args:
        inputs: Channels that come in; ``EXPANSION * width`` go out.
        width: Channels of the 3x3 convolution where it is not grouped.
        stride: The stride of the 3x3 convolution.
        groups: Groups of the 3x3 convolution: the cardinality.
        group_width: Its channels a group where ``width`` is 64, and in that proportion elsewhere.
    """

    def __init__(self, inputs: int, width: int, stride: int, groups: int = 1, group_width: int = 64) -> None:
        super().__init__()
        inner, outputs = width * groups * group_width // 64, EXPANSION * width
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
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
        width: Channels of the stem and inside the first stage's blocks, which put out ``EXPANSION`` times as many.
        classes: Outputs.
        in_channels: Channels of the images.
        large: Whether the stem is ImageNet's, 7x7 of stride 2 and a maximum of stride 2, instead of CIFAR's 3x3.
        groups: As for :class:`Bottleneck`.
        group_width: As for :class:`Bottleneck`.
    """

    def __init__(
        self,
        depths: tuple[int, ...],
        width: int,
        classes: int,
        in_channels: int = 3,
        large: bool = False,
        groups: int = 1,
        group_width: int = 64,
    ) -> None:
        super().__init__()
        kernel, stride, padding = (7, 2, 3) if large else (3, 1, 1)
        self.conv1 = nn.Conv2d(in_channels, width, kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if large else nn.Identity()
        self.stages = tuple(f"layer{number}" for number in range(1, len(depths) + 1))
        inputs = width
        for number, (stage, depth) in enumerate(zip(self.stages, depths, strict=True)):
            inner, blocks = width << number, list[Bottleneck]()
            for block in range(depth):
                stride = 2 if number > 0 and block == 0 else 1  # where a stage begins, but for the first
                blocks.append(Bottleneck(inputs, inner, stride, groups, group_width))
                inputs = EXPANSION * inner
            self.add_module(stage, nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in self.stages:
            x = getattr(self, stage)(x)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def initialize(network: nn.Module) -> None:
    """Draw the weights of the convolutions as He et al. (ICCV 2015) do, by what a convolution puts out."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


NETWORKS: dict[str, Callable[[], ResNet]] = {
    "resnet50": partial(ResNet, (3, 4, 6, 3), 64, 1000, large=True),
    "resnet164": partial(ResNet, (18, 18, 18), 16, 10),
}
"""The networks of the bench that need torch alone, as a GPU is not always beside torchvision.

ResNet-50 for ImageNet is torchvision's, version 1.5. ResNet-164 for CIFAR-10 has 9 * 18 + 2 layers and 1.70 million
parameters.
"""
IMAGE_SIZES = {"resnet164": 32}
"""Where it is not 224."""
