"""What a layer computes on images, and the plain BatchNorm that comes nearest to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from calibnorm.conversion import reverting
from calibnorm.inspect.evaluating import Called, Moments
from calibnorm.inspect.gates import has_gate
from calibnorm.inspect.steps import meet, steps_of
from calibnorm.networks import finding
from calibnorm.nn import CalibratedNorm
from calibnorm.ops.three_steps import without_autocast

Line = tuple[Tensor, Tensor]
"""Scale and shift, (C,), of ``y = scale * x + shift``: plain BatchNorm in evaluation."""
RIDGE = 1e-4
"""So much of a channel's usual variance is added with the mean of a for its scale: a channel that hardly varies on the
images says nothing of its scale, and one that varies as usual is moved by a ten-thousandth of what its gate varies."""


class Seen:
    """A layer on images: how much its gate varies, and the line that is nearest to what the layer does.

    In evaluation a layer computes ``y = a * (x - m) + b`` with a and b of an image's own. Over all images and pixels,
    the line that leaves the least of ``(a * (x - m) + b - scale * x - shift)^2`` needs nothing but (N, C) numbers, as
    the pixels enter through the mean m and the variance v of their plane alone::

        scale = (sum a v + cov(b, m)) / (sum v + cov(m, m))        shift = mean(b) - scale * mean(m)

    where cov is a sum over images of products of deviations. With a gate that is the same for every image, this is the
    gate's own line.
    """

    def __init__(self, layer: CalibratedNorm, name: str) -> None:
        self.layer, self.name = layer, name
        self.gate = Moments()
        self.images = self.values = 0
        self._origin: tuple[Tensor, Tensor] | None = None
        self._sums: Tensor | float = 0.0

    def see(self, call: Called) -> None:
        """Take a call in."""
        x = call.input
        if not x.numel():
            return
        self.images, self.values = self.images + len(x), self.values + x.numel()
        if has_gate(self.layer):
            gate = steps_of(self.layer, x, self.name).gate
            assert gate is not None, "a method that is gated has a gate"
            self.gate.add(gate)
        if self.layer.method.spatial or not self.layer.method.normalizes:
            return  # (N, C) numbers do not tell what it computes, or it has no BatchNorm
        m, v, a, b = coefficients(self.layer, x, self.name)
        # Around the first batch's means, since sums of products around zero would lose digits.
        if self._origin is None:
            self._origin = m.mean(0), b.mean(0)
        m, b = m - self._origin[0], b - self._origin[1]
        self._sums = self._sums + torch.stack([a * v + b * m, v + m * m, m, b, a]).sum(1)

    @property
    def line(self) -> Line:
        """The nearest line."""
        assert self._origin is not None
        child: Any = self.layer.bn
        product, square, m, b, a = torch.as_tensor(self._sums) / self.images
        usual = RIDGE * (child.running_var.to(m.dtype) + child.eps)
        scale = (product - b * m + usual * a) / (square - m * m + usual)
        return scale, b + self._origin[1] - scale * (m + self._origin[0])

    @property
    def spread(self) -> float | None:
        """The standard deviation of the gate from image to image over its mean, averaged over the channels."""
        return (self.gate.std / self.gate.mean).abs().mean().item() if self.gate.count > 1 else None


class Distance:
    """How far a layer is from a line: the root mean square, over the standard deviation of the layer's output."""

    def __init__(self, layer: CalibratedNorm, name: str, line: Line) -> None:
        self.layer, self.name, self.line = layer, name, line
        self._apart = self._within = 0.0
        self._between = Moments()

    def see(self, call: Called) -> None:
        """Take a call in."""
        x = call.input
        if x.numel():
            m, v, a, b = coefficients(self.layer, x, self.name)
            scale, shift = self.line
            self._apart += ((a - scale).square() * v + (b - scale * m - shift).square()).sum().item()
            self._within += (a.square() * v).sum().item()
            self._between.add(b)

    @property
    def value(self) -> float:
        """As a share of the standard deviation."""
        return root_ratio(self._apart, self._within + self._between.squares.sum().item())


def root_ratio(squares: float, of: float) -> float:
    """Return the root of a ratio of sums of squares; 0 where nothing differs."""
    return 0.0 if squares == 0.0 else (squares / of) ** 0.5 if of > 0.0 else float("inf")


def coefficients(layer: CalibratedNorm, x: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return m, v, a and b, (N, C), of the layer's ``y = a * (x - m) + b`` in evaluation."""
    with without_autocast(x):
        met = meet(layer, x, name)
        a, b = met.method.coefficients(met.instance, met.batch, met.params)
    m, v = met.instance.m, met.instance.v
    return m, v, a.expand_as(m), b.expand_as(m)


@torch.no_grad()
def to_plain(layer: CalibratedNorm, gates: list[reverting.AverageGate], line: Line | None) -> nn.Module:
    """Return the plain layer that computes a line, or, without one, what a layer with a constant gate does.

    The layer's own BatchNorm is changed; the layer must not be used any more.
    """
    plain = reverting.to_batchnorm(layer, gates)
    if line is not None:
        child: Any = layer.bn
        for part in finding.parts_of(child):
            reverting.complete(part, {"weight", "bias"}, part.running_mean)
        scale, shift = (t.to(child.running_mean.device) for t in line)
        child.weight.copy_(scale * (child.running_var.to(scale.dtype) + child.eps).sqrt())
        child.bias.copy_(shift + scale * child.running_mean.to(scale.dtype))
    return plain
