"""The recipes of the RBN paper (Gao et al., CVPR 2021), section 4.1, and ours where it gives none.

The paper crops 224 pixels "from a resized image", with "the same basic data argumentation" as the papers of ResNet,
ResNeXt and Res2Net. ResNet's takes a short side of 256 to 480 pixels and changes colors a little; here it is what
PyTorch's examples do, a random part of 8 to 100 % of the area, resized, and flips, without colors. Not said, and the
usual here: no Nesterov, what the decay falls on (everything), the warm-up's beginning (0) and the cosine's (its end).
"""

from __future__ import annotations

from dataclasses import replace

from calibnorm.lab.recipes import iebn
from calibnorm.lab.recipes.classification import Classification


def imagenet(model: str) -> Classification:
    """ImageNet's ResNets, section 4.1: 100 epochs of batches of 256, learning rate 0.1, a tenth every 30 epochs."""
    return replace(iebn.imagenet(model), norm="rbn", epochs=100)


def mobilenet_v2() -> Classification:
    """MobileNetV2, section 4.1: 200 epochs of batches of 256, 0.05 along a cosine after 5 of warm-up, decay 4e-5.

    The paper says "SGD" alone: the momentum of 0.9 is ours.
    """
    cosine = replace(imagenet("mobilenet_v2"), schedule="cosine", milestones=(), warmup_epochs=5)
    return replace(cosine, epochs=200, learning_rate=0.05, weight_decay=4e-5)


def cifar(model: str) -> Classification:
    """The "CIFAR" of Table 4, for which the paper gives no recipe: ours.

    CIFAR-100, whose accuracies the printed ones resemble, with the usual settings for these networks: 200 epochs of
    batches of 128, learning rate 0.1 along a cosine, weight decay 5e-4 on everything, pad-4 crops and flips.
    """
    cosine = replace(imagenet(model), schedule="cosine", milestones=())
    return replace(cosine, data="cifar100", epochs=200, batch_size=128, weight_decay=5e-4)
