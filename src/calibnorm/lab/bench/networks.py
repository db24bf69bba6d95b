"""The networks of the bench that need torch alone: a GPU is not always beside torchvision."""

from __future__ import annotations

from collections.abc import Callable

from calibnorm.lab.models.resnet import ResNet


def resnet50() -> ResNet:
    """Return ResNet-50 for ImageNet: torchvision's, version 1.5."""
    return ResNet((3, 4, 6, 3), 64, 1000, large=True)


def resnet164() -> ResNet:
    """Return ResNet-164 for CIFAR-10: 9 * 18 + 2 layers, 1.70 million parameters."""
    return ResNet((18, 18, 18), 16, 10)


NETWORKS: dict[str, Callable[[], ResNet]] = {"resnet50": resnet50, "resnet164": resnet164}
IMAGE_SIZES = {"resnet164": 32}
"""Where it is not 224."""
