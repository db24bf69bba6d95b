"""The gates of a network's layers: what they do on data, and how to hold them constant.

A gate is the factor d that a method puts on its standardized feature for every image and channel (IEBN, SE, and the
scaling calibration of RBN). Where it hardly differs from image to image, it is little more than a part of gamma.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from calibnorm.inspect.evaluating import Called, Images, Moments, evaluate, watching
from calibnorm.inspect.learned import Quantity, over_channels
from calibnorm.inspect.steps import steps_of
from calibnorm.inspect.tables import Table
from calibnorm.methods import RBN
from calibnorm.networks.finding import find_layers, steady_noise
from calibnorm.nn import CalibratedNorm


@dataclass(frozen=True)
class Gate(Quantity):
    """The gate of one layer on data; ``mean`` to ``p90`` are those of its mean over the images, over the channels.

    Args:
        images: How many images it was read on; a layer that is called twice for an image has seen two.
        std_over_images: The (unbiased) standard deviation from image to image, averaged over the channels.
        spread: The same, divided by the channel's mean before it is averaged.
        between_channels: The variance of the gate between channels, of its mean over all images.
        between_images: Its variance between images, averaged over the channels.
        instance_share: The second over the sum of both: how much of what the gate does is information of the instance.
            A gate that is one constant for everything has none.
    """

    images: int
    std_over_images: float
    spread: float
    between_channels: float
    between_images: float
    instance_share: float


class GateReport(Table[Gate]):
    """What :func:`gates` returns: a row for every layer that has a gate and was called."""

    row = Gate

    @property
    def spread(self) -> float | None:
        """How much the gates vary from image to image, as a share of their means, averaged over all channels."""
        channels = sum(gate.values for gate in self)
        return sum(gate.spread * gate.values for gate in self) / channels if channels else None

    @property
    def instance_share(self) -> float | None:
        """How much of what the gates do is information of the instance: the layers' shares, averaged over channels."""
        channels = sum(gate.values for gate in self)
        return sum(gate.instance_share * gate.values for gate in self) / channels if channels else None


def gates(model: nn.Module, images: Images) -> GateReport:
    """Return what the network's gates are on images, and how much they vary from one image to the next.

    The network runs in evaluation mode, without gradients; modes, buffers and hooks are afterwards as they were. The
    memory that is used does not grow with the number of images. A gate is computed from the layer's input as the layer
    itself computes it, in float64 where the device has that, and summed in the same. A layer that was not called has
    no row, nor has RBN with ``scale_stat="spatial_mean"`` or another ``"spatial_..."``, whose gate differs from pixel
    to pixel. Of one method over another (``over=``), it is the gate of the outer one.

    Args:
        model: The network, which takes a batch of images.
        images: A batch; or an iterable of batches, or of tuples or lists that begin with one. They are moved to the
            network's device.

    Returns:
        A list of :class:`Gate`, one a layer, that prints as a table; ``to_dicts()`` makes plain dicts of it, and
        ``spread`` is the average over all channels. It is empty where the network has no gates.

    Raises:
        TypeError: The model is no module, or a batch is no tensor.
        ValueError: There is no batch.

    >>> import torch, calibnorm as cn
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), cn.IEBN2d(8), nn.Conv2d(8, 8, 3), cn.RBN2d(8))
    >>> report = cn.inspect.gates(net, [torch.randn(16, 3, 8, 8) for _ in range(4)])
    >>> [(gate.layer, gate.images, round(gate.mean, 4), gate.std_over_images) for gate in report]
    [('1', 64, 0.2689, 0.0), ('3', 64, 0.7311, 0.0)]
    """
    with watch_gates(model) as watch:
        if watch.layers:
            evaluate(model, images)
    return watch.report()


def gate_values(model: nn.Module, images: Images) -> dict[str, Tensor]:
    """Return the gates themselves on images, by layer: for histograms, and as much memory as they take.

    Args:
        model: The network, which is called as in :func:`gates`.
        images: As in :func:`gates`.

    Returns:
        The gates (N, C) of every layer that has one and was called, by the layer's name.

    Raises:
        TypeError: The model is no module, or a batch is no tensor.
        ValueError: There is no batch.

    >>> import torch, calibnorm as cn
    >>> net = torch.nn.Sequential(cn.IEBN2d(8), torch.nn.BatchNorm2d(8))
    >>> {name: tuple(gate.shape) for name, gate in cn.inspect.gate_values(net, torch.randn(4, 8, 3, 3)).items()}
    {'0': (4, 8)}
    """
    seen: dict[str, list[Tensor]] = {}

    def look(call: Called) -> None:
        name = names[call.layer]
        seen.setdefault(name, []).append(_gate_of(call, name))

    names: dict[nn.Module, str] = {layer: watched.title for layer, watched in GateWatch(model).layers.items()}
    if names:
        with watching(dict.fromkeys(names, look)):
            evaluate(model, images)
    return {name: torch.cat(parts) for name, parts in seen.items()}


@contextmanager
def watch_gates(model: nn.Module) -> Iterator[GateWatch]:
    """Read the gates of every evaluation that runs while the context is open: for networks that take more than images.

    Args:
        model: The network, in evaluation mode whenever it is called.

    Yields:
        A :class:`GateWatch`, whose ``report()`` returns what :func:`gates` does.

    Raises:
        TypeError: The model is no module.
        ValueError: When the network is called in training mode.

    >>> import torch, calibnorm as cn
    >>> net = torch.nn.Sequential(cn.IEBN2d(8)).eval()
    >>> with cn.inspect.watch_gates(net) as watch:
    ...     y = net(torch.randn(4, 8, 5, 5))
    >>> [gate.images for gate in watch.report()]
    [4]
    """
    watch = GateWatch(model)
    with watching({layer: watched.see for layer, watched in watch.layers.items()}):
        yield watch


class GateWatch:
    """The gates of a network's layers, as far as they have been seen."""

    def __init__(self, model: nn.Module) -> None:
        found = [(entry.title, depth, entry.module) for depth, entry in enumerate(find_layers(model), start=1)]
        self.layers = {
            layer: _Watched(title, depth, layer)
            for title, depth, layer in found
            if isinstance(layer, CalibratedNorm) and has_gate(layer)
        }

    def report(self) -> GateReport:
        """Return what has been seen until now."""
        return GateReport(watched.row() for watched in self.layers.values() if watched.seen.count)


class _Watched:
    """One layer's gate, over the images seen so far."""

    def __init__(self, title: str, depth: int, layer: CalibratedNorm) -> None:
        self.title, self.depth, self.layer = title, depth, layer
        self.seen = Moments()

    def see(self, call: Called) -> None:
        if call.input.numel():
            self.seen.add(_gate_of(call, self.title))

    def row(self) -> Gate:
        mean, std = self.seen.mean, self.seen.std
        initial = self.layer.method.initial_gate(self.layer.num_features)
        start = None if initial is None else initial.mean().item()
        name = (self.title, self.depth, "gate", mean.numel(), start)
        over_images = self.seen.count, std.mean().item(), (std / mean).mean().item()
        return Gate(*name, *over_channels(mean), *over_images, *_split(mean, std, self.seen.count))


def _split(mean: Tensor, std: Tensor, images: int) -> tuple[float, float, float]:
    """Return the variance between channels and that between images, both unbiased, and the share of the latter."""
    between_images = std.square().mean()
    # The means of channels differ also because each is that of some images alone.
    between_channels = (mean.var() if len(mean) > 1 else torch.zeros_like(between_images)) - between_images / images
    rounding = mean.square().mean() * (16 * torch.finfo(mean.dtype).eps) ** 2
    constant = bool(between_images <= rounding)  # its sums were merged from batch to batch
    share = 0.0 if constant else (between_images / (between_images + between_channels)).item()
    return between_channels.item(), between_images.item(), share


def _gate_of(call: Called, title: str) -> Tensor:
    gate = steps_of(call.layer, call.input, title).gate
    assert gate is not None, "a method that is gated has a gate"
    return gate


def has_gate(layer: CalibratedNorm) -> bool:
    """Whether the layer has a gate for every image and channel."""
    scales = layer.method.gated or not layer.method.normalizes  # SE alone
    return bool(scales) and not layer.method.spatial


@torch.no_grad()
def hold_scaling_gates(model: nn.Module) -> bool:
    """Give RBN's scaling gates the value that they have for an average feature, in place: they ignore the image then.

    w_b becomes ``w_b + w_v * K`` and w_v 0, with the K_s of a standardized feature: 0 for the mean (N_b under noise
    that is always on) and, not quite an average, 1 for the standard deviation (``|N_a|``). The centering calibration
    goes on following the image, so what the network loses by this is what its scaling gates took from each image. To
    hold every gate of every method constant, use ``cn.revert(model, lossy=True)``.

    Args:
        model: The network, changed in place.

    Returns:
        Whether a layer whose gate is held has a centering calibration; if not, ``cn.revert`` holds no more than this.

    Raises:
        TypeError: The model is no module.

    >>> import torch, calibnorm as cn
    >>> layer = cn.RBN2d(4, init=(0.0, 0.5, 1.0), noise=(0.8, 0.5))
    >>> cn.inspect.hold_scaling_gates(layer)
    True
    >>> layer.scale_weight.tolist()[0], layer.scale_bias.tolist()[0]
    (0.0, 1.25)
    """
    layers = [entry.module for entry in find_layers(model) if isinstance(entry.module, CalibratedNorm)]
    held = [layer for layer in layers if isinstance(layer.method, RBN) and layer.method.scaling]
    for layer in held:
        assert isinstance(layer.method, RBN)
        tensors = layer.gates()
        tensors["scale_bias"].add_(layer.method.average_k_s(steady_noise(layer)) * tensors["scale_weight"])
        tensors["scale_weight"].zero_()
    return any("center_weight" in layer.gates() for layer in held)
