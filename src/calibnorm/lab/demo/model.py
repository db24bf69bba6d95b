"""A small ResNet in the CIFAR layout, and its copies with other norms."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import calibnorm as cn
from calibnorm.lab.demo.config import VARIANTS, Condition, DemoConfig, NormName


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut (He et al. 2016); a 1 x 1 convolution where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class SmallResNet(nn.Module):
    """Three stages of basic blocks for images of one channel and ten classes.

    Args:
        blocks: Blocks in each stage.
        width: Channels of the first stage; each later stage doubles them and halves the image.
    """

    def __init__(self, blocks: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        channels = [width, width, 2 * width, 4 * width]
        self.stages = nn.Sequential(
            *(
                nn.Sequential(
                    *(
                        BasicBlock(channels[stage - 1 if block == 0 else stage], channels[stage], stride)
                        for block, stride in enumerate([1 if stage == 1 else 2] + [1] * (blocks - 1))
                    )
                )
                for stage in (1, 2, 3)
            )
        )
        self.head = nn.Linear(channels[-1], 10)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return the class scores (N, 10) of images (N, 1, H, W)."""
        y = self.stages(F.relu(self.bn(self.conv(x))))
        return self.head(y.mean((2, 3)))  # type: ignore[no-any-return]


def build(config: DemoConfig, norm: NormName, condition: Condition, seed: int) -> nn.Module:
    """Return a network of one norm; all norms and conditions of a seed start from the same weights.

    The network is built with BatchNorm from the seed and then converted, so that no norm's own parameters can shift
    the random numbers behind the convolutions. Clean BN stays ``nn.BatchNorm2d`` itself.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SmallResNet(config.blocks, config.width)
    variant = VARIANTS[norm]
    if norm == "bn" and condition == "clean":
        return network
    noise = config.noise if condition == "noise" else None
    # "always" is the harder reading of the paper, which does not say whether its noise stays on at test time.
    cn.convert(network, variant.method, noise=noise, noise_in="always", **variant.options)
    return network
