"""How much a channel's mean varies over a data set, before and after the scaling calibration: RBN's Figure 5."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from calibnorm.inspect.evaluating import Called, Images, Moments, evaluate, watching
from calibnorm.inspect.layers import Where, layers_of
from calibnorm.inspect.steps import is_understood, steps_of
from calibnorm.inspect.tables import Table


@dataclass(frozen=True)
class ChannelStd:
    """One layer; the standard deviations are those of its channels' means over the images.

    Args:
        layer: The layer's name in the network.
        depth: The layer's place among the network's norms, from 1, in the order of definition.
        channels: How many it has.
        images: How many images it was read on; a layer that is called twice for an image has seen two.
        before: The standard deviation of the standardized feature's mean, averaged over the channels.
        after: The same of the scaled feature. It is the same number where nothing scales.
        before_unevenness: The standard deviation over the channels of what ``before`` is the average of.
        after_unevenness: The same for ``after``.
    """

    layer: str
    depth: int
    channels: int
    images: int
    before: float
    after: float
    before_unevenness: float
    after_unevenness: float


class ChannelStds(Table[ChannelStd]):
    """What :func:`channel_std` returns: a row for every layer that was called.

    Attributes:
        by_channel: The standard deviations of every channel before and after, (2, C), by the layer's name.
    """

    row = ChannelStd

    def __init__(self) -> None:
        super().__init__()
        self.by_channel: dict[str, Tensor] = {}


def channel_std(model: nn.Module, images: Images, where: Where = None) -> ChannelStds:
    """Return how much the mean of every channel varies from image to image, before and after the scaling calibration.

    The mean is that of the standardized feature's plane, X_s in RBN, and then of what the gate makes of it, X_cs: RBN's
    Figure 5 shows both for every channel of a layer. Where the gate multiplies beta too (SE), both are with gamma and
    beta. Of norms of other libraries it is the output's mean over ``|gamma|``. The network runs in evaluation mode,
    without gradients; modes, buffers and hooks are afterwards as they were. Memory does not grow with the images.

    Args:
        model: The network, which takes a batch of images.
        images: A batch; or an iterable of batches, or of tuples or lists that begin with one.
        where: A function of a module's name and the module that chooses the layers; by default all norms.

    Returns:
        A list of :class:`ChannelStd` that prints as a table; ``to_dicts()`` makes plain dicts of it, and
        ``by_channel[layer]`` has the numbers of every channel.

    Raises:
        TypeError: The model is no module, or a batch is no tensor.
        ValueError: There is no batch.

    >>> import torch, calibnorm as cn
    >>> net = torch.nn.Sequential(cn.RBN2d(8), torch.nn.ReLU(), torch.nn.BatchNorm2d(8))
    >>> found = cn.inspect.channel_std(net, [torch.randn(16, 8, 4, 4) for _ in range(4)])
    >>> [(row.layer, row.images, round(row.after / row.before, 4)) for row in found]
    [('0', 64, 0.7311), ('2', 64, 1.0)]
    >>> found.by_channel["0"].shape
    torch.Size([2, 8])
    """
    layers = layers_of(model, where)
    seen = {layer: Moments() for layer in layers}

    def look(call: Called) -> None:
        if (means := means_of(call, layers[call.layer])) is not None:
            seen[call.layer].add(torch.cat(means, 1))

    with watching(dict.fromkeys(layers, look)):
        evaluate(model, images)
    found = ChannelStds()
    for depth, (layer, name) in enumerate(layers.items(), 1):
        if seen[layer].count:
            both = seen[layer].std.reshape(2, -1).to("cpu", torch.float64)
            unevenness = both.std(1, correction=0).tolist()
            row = (name, depth, both.shape[1], seen[layer].count, *both.mean(1).tolist(), *unevenness)
            found.append(ChannelStd(*row))
            found.by_channel[name] = both
    return found


def means_of(call: Called, name: str) -> tuple[Tensor, Tensor] | None:
    """Return the means of the planes, (N, C), before and after the scaling; None where a layer has no channels."""
    layer: Any = call.layer
    if is_understood(layer) and call.input.numel():
        steps = steps_of(layer, call.input, name)
        return steps.gated.shift, steps.scaled.shift
    y, weight = call.output, getattr(layer, "weight", None)
    if y.ndim < 2 or not y.numel() or not (weight is None or weight.shape == y.shape[1:2]):
        return None
    means = y.double().flatten(2).mean(2) if y.ndim > 2 else y.double()
    means = means if weight is None else means / weight.detach().abs()
    return means, means
