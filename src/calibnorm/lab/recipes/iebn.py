"""The recipes of the IEBN paper (Liang et al., AAAI 2020, arXiv 1908.04008), Tables 6 and 7.

SGD with momentum 0.9, and a weight decay that falls on every parameter, gates included. CIFAR images are padded by 4
pixels, cropped and flipped; ImageNet's are cropped to 224 pixels and flipped.

What the paper does not say, and is the usual here: that the momentum is not Nesterov's, what the decay falls on, the
padding of CIFAR's "standard" random crops, and how ImageNet's are drawn (a random part of 8 to 100 % of the area,
resized). Other than the usual: the last, smaller batch of an epoch is left out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from calibnorm.lab.recipes.classification import Classification

Cifar = Literal["cifar10", "cifar100"]


def resnet164(data: Cifar) -> Classification:
    """ResNet-164, Table 6: 180 epochs of batches of 128, learning rate 0.1, a tenth after 81 and 122."""
    return Classification(
        model="resnet164",
        data=data,
        norm="iebn",
        epochs=180,
        batch_size=128,
        learning_rate=0.1,
        momentum=0.9,
        weight_decay=1e-4,
        decay_gates=True,
        schedule="step",
        milestones=(81, 122),
        gamma=0.1,
        augment="crop_flip",
    )


def preresnet164(data: Cifar) -> Classification:
    """PreResNet-164, Table 6: as ResNet-164, but 164 epochs."""
    return replace(resnet164(data), model="preresnet164", epochs=164)


def resnext29(data: Cifar) -> Classification:
    """ResNeXt-29 8x64d, Table 6: 300 epochs, a tenth after 150 and 225, weight decay 5e-4."""
    return replace(resnet164(data), model="resnext29_8x64d", epochs=300, milestones=(150, 225), weight_decay=5e-4)


def densenet100(data: Cifar) -> Classification:
    """DenseNet-100-12 (BC, compression 0.5), Table 6: 300 epochs of batches of 64, a tenth after 150 and 225."""
    return replace(resnet164(data), model="densenet100_k12", epochs=300, batch_size=64, milestones=(150, 225))


def imagenet(model: str) -> Classification:
    """ImageNet, Table 7: 120 epochs of batches of 256, learning rate 0.1, a tenth after 30, 60 and 90."""
    longer = replace(resnet164("cifar100"), epochs=120, batch_size=256, milestones=(30, 60, 90))
    return replace(longer, model=model, data="imagenet")
