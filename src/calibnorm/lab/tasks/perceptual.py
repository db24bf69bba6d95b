"""Perceptual losses (Johnson et al., ECCV 2016, section 3.2): content, style and total variation of each picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from calibnorm.lab.models.vgg import Features


class Losses(NamedTuple):
    """Each (N,), in float32."""

    content: Tensor
    style: Tensor
    variation: Tensor


def gram(features_NCHW: Tensor) -> Tensor:
    """Return the Gram matrices (N, C, C) of features, over C H W, in float32 also where features and context are half.

    >>> gram(torch.tensor([[[[1.0, 2.0]], [[0.0, 3.0]]]])).tolist()
    [[[1.25, 1.5], [1.5, 2.25]]]
    """
    with torch.autocast(features_NCHW.device.type, enabled=False):
        flat = features_NCHW.float().flatten(2)
        return flat @ flat.mT / flat[0].numel()


def variation(pictures: Tensor) -> Tensor:
    """Return the mean square of the differences between neighbours below and beside each other, (N,)."""
    down, across = pictures.diff(dim=2), pictures.diff(dim=3)
    return down.square().mean((1, 2, 3)) + across.square().mean((1, 2, 3))


class Perceptual:
    """What a picture is off the content of one picture and the style of another.

    With phi a layer's features of shape C x H x W and G their Gram matrices,

        content = ||phi(y) - phi(x)||^2 / ||phi(x)||^2                       Eq. 2
        style   = sum over layers of weight * ||G(y) - G(s)||^2 / ||G(s)||^2  Eq. 4

    The paper divides the first by C H W and the second by nothing. Here each is relative to what it aims at, so that
    weights mean the same for any features: 1 is what a picture without features is off.

    Args:
        features: The network whose features are compared.
        style: The picture (3, H, W), from 0 to 1, on the features' device.
        content_layer: The layer of the content loss.
        style_layers: The layers of the style loss, each with its weight.
        half: Compute the features in bfloat16; everything that is made of them is in float32 all the same.
    """

    def __init__(
        self,
        features: Features,
        style: Tensor,
        content_layer: str,
        style_layers: Mapping[str, float],
        half: bool = False,
    ) -> None:
        self.features, self.content_layer, self.style_layers, self.half = features, content_layer, style_layers, half
        self._deepest = max((content_layer, *style_layers))
        with torch.no_grad():
            found = self._of(style[None], self._deepest)
            self.targets = {name: gram(found[name]) for name in style_layers}

    def __call__(self, pictures: Tensor, contents: Tensor) -> Losses:
        """Return the losses of pictures that were made of others, both (N, 3, H, W) from 0 to 1."""
        with torch.no_grad():
            aims = self._of(contents, self.content_layer)[self.content_layer]
        found = self._of(pictures, self._deepest)
        content = _relative(found[self.content_layer], aims)
        style = torch.zeros_like(content)
        for name, weight in self.style_layers.items():
            style = style + weight * _relative(gram(found[name]), self.targets[name])
        return Losses(content, style, variation(pictures.float()))

    def _of(self, pictures: Tensor, deepest: str) -> dict[str, Tensor]:
        with torch.autocast(pictures.device.type, torch.bfloat16, enabled=self.half):
            found: dict[str, Tensor] = self.features(pictures.float(), deepest)
            return found


def _relative(found: Tensor, aims: Tensor) -> Tensor:
    """Return the square of the distance over that of the aim, (N,), in float32."""
    found, aims = found.float(), aims.float()
    return (found - aims).square().flatten(1).sum(1) / aims.square().flatten(1).sum(1).clamp_min(1e-12)
