"""The batch-noise meter: how much of what a network computes of an image is the doing of the images beside it.

docs/batch-noise.md explains the estimator, and what it does not say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from calibnorm.inspect.company import Batches, Pool
from calibnorm.inspect.evaluating import Images, eagerly
from calibnorm.inspect.holding import Held
from calibnorm.inspect.layers import Where, layers_of
from calibnorm.inspect.metering import Losses, Meter
from calibnorm.inspect.tables import Table
from calibnorm.inspect.variance import Share
from calibnorm.networks.finding import like
from calibnorm.networks.tables import aligned

Shares = dict[int, Share]
"""By batch size."""

KINDS = ("own", "accumulated", "own_gradient", "accumulated_gradient")
"""What is measured of a layer."""


@dataclass(frozen=True)
class LayerNoise:
    """One layer's batch noise: by batch size, the share of a variance that is the company's doing.

    Args:
        name: The layer's name in the network.
        depth: The layer's place among the network's norms, from 1, in the order of definition.
        own: Of the layer's output, where this layer alone sees the new company.
        accumulated: Of the layer's output, where the whole network sees it.
        own_gradient: Of the gradient of the image's loss by the layer's input, where this layer alone sees it; empty
            without a loss.
        accumulated_gradient: The same where the whole network sees it.
    """

    name: str
    depth: int
    own: Shares
    accumulated: Shares
    own_gradient: Shares
    accumulated_gradient: Shares


@dataclass(frozen=True)
class NoiseRow:
    """One line of a meter's table: a layer, or the whole network, at one batch size; None is what was not measured."""

    layer: str
    depth: int
    batch_size: int
    own: Share | None = None
    accumulated: Share | None = None
    own_gradient: Share | None = None
    accumulated_gradient: Share | None = None


class NoiseTable(Table[NoiseRow]):
    """The readings of a meter, line by line."""

    row = NoiseRow

    def __str__(self) -> str:
        shown = ([None if cell is None else str(cell) for cell in vars(row).values()] for row in self)
        return aligned(self._columns(), shown)

    __repr__ = __str__

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return every row as a dict of strings and numbers, with ``own_low`` and ``own_high`` beside ``own``."""
        return [_flat(row) for row in self]


def _flat(row: NoiseRow) -> dict[str, Any]:
    flat: dict[str, Any] = {"layer": row.layer, "depth": row.depth, "batch_size": row.batch_size}
    for kind in KINDS:
        share = getattr(row, kind)
        ends = (None, None, None) if share is None else (share.value, share.low, share.high)
        flat |= zip((kind, f"{kind}_low", f"{kind}_high"), ends, strict=True)
    return flat


@dataclass(frozen=True)
class BatchNoise:
    """What :func:`batch_noise` returns. It prints as a table.

    Args:
        layers: The layers, in the order of definition; one that was not called is left out.
        loss: By batch size, the share of the loss; empty where there is none.
        gradient: By batch size, the share of the gradient of an image's loss by all parameters.
        probes: How many images were looked at.
        draws: How many batches each was put into, of every size.
        pool: How many images the company was drawn from.
    """

    layers: list[LayerNoise]
    loss: Shares
    gradient: Shares
    probes: int
    draws: int
    pool: int

    def table(self) -> NoiseTable:
        """Return a line for every layer and batch size; those of depth 0 are about the whole network."""
        table = NoiseTable()
        for layer in self.layers:
            for size in layer.accumulated:
                shares = (getattr(layer, kind).get(size) for kind in KINDS)
                table.append(NoiseRow(layer.name, layer.depth, size, *shares))
        for size, share in self.loss.items():
            table.append(NoiseRow("(loss)", 0, size, accumulated=share))
        for size, share in self.gradient.items():
            table.append(NoiseRow("(parameters)", 0, size, accumulated_gradient=share))
        return table

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return the lines as dicts of strings and numbers: what JSON, CSV writers and pandas take."""
        return self.table().to_dicts()

    def to_pandas(self) -> Any:
        """Return the lines as a pandas DataFrame."""
        return self.table().to_pandas()

    def __str__(self) -> str:
        return str(self.table())


def batch_noise(
    model: nn.Module,
    images: Images,
    probes: int = 32,
    batch_sizes: Sequence[int] = (8, 32),
    draws: int = 16,
    seed: int = 0,
    *,
    loss: Losses | None = None,
    gradients: bool = True,
    pool: int = 256,
    where: Where = None,
) -> BatchNoise:
    """Measure how much of a layer's output, of the loss and of its gradient is the doing of an image's company.

    Every probe image i is put into R batches with other images, drawn anew each time; whatever is computed of it is
    y_ir, and ``share = within / (within + between)``, where within is the variance of y_ir over the draws and between
    that of its mean over the images, each summed over all numbers of y (one-way random effects, both unbiased). The
    interval is that of a jackknife over the images.

    *accumulated*: the whole network sees the new company. *own*: only the layer sees it; its inputs, and the gradient
    that comes to its output, are those of the reference, one batch of the whole pool.

    The network computes as it is now: call ``model.train()`` before to measure what training sees, since a BatchNorm in
    evaluation has no company. Buffers, modes, gradients, hooks and random states are afterwards as they were, and every
    forward meets the same running statistics and random numbers, so that dropout is no noise. It takes
    ``probes * draws`` forwards of every batch size (and as many backwards where there is a loss), and memory for the
    pool as one batch.

    Args:
        model: The network, which takes a batch of images. It is measured in its present precision, on its device.
        images: A batch; or an iterable of batches, or of tuples or lists that begin with one. Where the second entry is
            a tensor of a label for every image, there is a loss.
        probes: Images that are looked at, at least 3; all, where there are fewer.
        batch_sizes: Images in a batch, the probe included, each at least 2.
        draws: Batches of every size for each probe, at least 2.
        seed: Chooses pool, probes and company.
        loss: A function of the output and the labels that returns every image's loss, (B,). By default it is the
            cross-entropy, where the output is (B, classes) and labels are integers; else nothing is said of a loss.
        gradients: Measure gradients too, where there is a loss.
        pool: Images that probes and company are chosen from at random; all, where there are fewer.
        where: A function of a module's name and the module that chooses the layers; by default all norms.

    Returns:
        A :class:`BatchNoise`: ``.layers``, each with ``.name``, ``.own[batch_size]`` and ``.accumulated[batch_size]``,
        which are floats with ``.low`` and ``.high``; ``.loss`` and ``.gradient`` by batch size. It prints as a table.

    Raises:
        TypeError: The model is no module, or a batch is no tensor.
        ValueError: A number is too small, there are fewer than three images, or ``where`` chooses no layer.

    >>> import torch, calibnorm as cn
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), cn.GN2d(8, groups=4))
    >>> _ = torch.manual_seed(0)
    >>> noise = cn.inspect.batch_noise(net.train(), torch.randn(64, 3, 8, 8), probes=8, batch_sizes=(4, 16), draws=4)
    >>> [layer.name for layer in noise.layers], noise.layers[1].own[4], noise.layers[0].own[4] > noise.layers[0].own[16]
    (['1', '4'], 0 (0 to 0), True)
    """
    _check(3, probes=probes, pool=pool)
    _check(2, draws=draws)
    for size in batch_sizes:
        _check(2, batch_sizes=size)
    if not batch_sizes:
        raise ValueError("batch_sizes is empty; name one or more, such as (8, 32)")
    layers = layers_of(model, where)
    first = like(model)
    kept = Pool.read(images, pool, seed, None if first is None else first.device)
    if len(kept) < 3:
        raise ValueError(f"images holds too few: {len(kept)}, and what differs between images takes at least 3")
    if loss is not None and kept.labels is None:
        raise ValueError("loss= needs labels; pass batches of (images, labels), such as [(images, labels)]")
    probes = min(probes, len(kept))
    sizes = dict.fromkeys(batch_sizes)
    batches = [Batches.drawn(size, probes, draws, len(kept), seed, kept.images.device) for size in sizes]
    with Held(model) as held, eagerly(model):
        meter = Meter(model, layers, kept, held, loss, gradients, seed)
        meter.measure_own(batches)
        for each in batches:
            meter.measure_accumulated(each)
    shares = meter.shares
    names = [(depth, layer, name) for depth, (layer, name) in enumerate(layers.items(), 1)]
    return BatchNoise(
        [
            LayerNoise(name, depth, *(shares(layer, kind) for kind in KINDS))
            for depth, layer, name in names
            if shares(layer, "accumulated")
        ],
        shares(model, "loss"),
        shares(model, "gradient"),
        probes,
        draws,
        len(kept),
    )


def _check(least: int, **counts: int) -> None:
    """Refuse numbers that are too small."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}={value!r} must be a whole number of at least {least}")
