"""ResNets of pre-activation bottleneck blocks (He et al., ECCV 2016, arXiv 1603.05027), for images of 32x32 pixels."""

from __future__ import annotations

from torch import Tensor, nn

from calibnorm.bench.networks import EXPANSION, initialize


class PreActivation(nn.Module):
    """Norm and ReLU before each of the 1x1, 3x3, 1x1 convolutions, and the shortcut around them.

    The shortcut takes the block's input as it comes, and its projection has no norm: the IEBN paper's count of
    PreResNet-164 fits this and, as printed, others too; so does the code of its authors (gbup-group/DIANet on GitHub).
    """

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        # SE's place: no norm follows the last convolution that it could come after
        self.se: nn.Module = nn.Identity()
        self.downsample = None
        if inputs != outputs or stride != 1:
            self.downsample = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return x + branch(x), x projected where its shape is another."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.conv1(self.relu(self.bn1(x)))
        y = self.conv2(self.relu(self.bn2(y)))
        y = self.se(self.conv3(self.relu(self.bn3(y))))
        out: Tensor = y + shortcut
        return out


class PreResNet(nn.Module):
    """A 3x3 convolution, three stages of pre-activation blocks, norm, ReLU, and a linear classifier.

    Args:
        depth: Blocks of each stage.
        classes: Outputs.
        in_channels: Channels of the images.
    """

    def __init__(self, depth: int, classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.layer1 = stage(16, 16, depth, 1)
        self.layer2 = stage(64, 32, depth, 2)
        self.layer3 = stage(128, 64, depth, 2)
        self.bn = nn.BatchNorm2d(256)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(256, classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        logits: Tensor = self.fc(self.relu(self.bn(x)).mean((2, 3)))
        return logits


def stage(inputs: int, width: int, depth: int, stride: int) -> nn.Sequential:
    """Return the blocks of a stage; the first has its stride."""
    first = PreActivation(inputs, width, stride)
    return nn.Sequential(first, *(PreActivation(EXPANSION * width, width, 1) for _ in range(depth - 1)))
