"""What a backend brings, and a layer of any method made of it.

:class:`StepByStep` calls the method's own functions between the four passes and lets autograd find their gradient. Its
forty small torch operations take as long as the passes where pixels are few. A backend may therefore bring a fused
implementation (another :class:`ThreeSteps`) for the methods of :mod:`calibnorm.ops.kernel_methods`, and one for those
whose step can be made a program (:mod:`calibnorm.ops.programs`); both are checked against this one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from calibnorm.ops.coefficients import Call, Pulled, pull_back
from calibnorm.ops.reference import Rectified, coefficient_dtype
from calibnorm.ops.statistics import Statistics


class Passes(Protocol):
    """The four passes and the update of running statistics; :mod:`calibnorm.ops.reference` says what each returns."""

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]: ...  # noqa: D102
    def affine(  # noqa: D102
        self, x: Tensor, m: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None = None, relu: bool = False
    ) -> Tensor: ...
    def gradient_sums(  # noqa: D102
        self, dy: Tensor, x: Tensor, m: Tensor, relu: Rectified | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]: ...
    def gradient_apply(  # noqa: D102
        self,
        dy: Tensor,
        x: Tensor,
        m: Tensor,
        scale: Tensor,
        slope: Tensor,
        offset: Tensor,
        shift: Tensor | None = None,
    ) -> Tensor: ...
    def update_running(  # noqa: D102
        self, buffers: tuple[Tensor, ...], mean: Tensor, var: Tensor, momentum: float, unbias: float
    ) -> bool: ...


class Normalized(NamedTuple):
    """What a forward returns."""

    y: Tensor
    moments: Tensor | None
    """m and v, (2, N, C), kept for backward; None for planes of one pixel, where m is x and v is 0."""
    statistics: Statistics | None
    """The statistics used: the given ones, or this batch's; None where nobody needs them any more: they have moved the
    running ones (``Call.moving``), and what backward needs of them is kept with the moments, for the same backend."""


class Wanted(NamedTuple):
    """Which gradients a backward is to find."""

    x: bool
    residual: bool
    tensors: tuple[bool, ...]


class Gradients(NamedTuple):
    """What a backward finds: None where nothing is wanted."""

    x: Tensor | None
    residual: Tensor | None
    tensors: list[Tensor | None]


class ThreeSteps(Protocol):
    """The whole of a layer, forward and back: plain tensors in, no graph recorded."""

    def forward(self, x: Tensor, call: Call) -> Normalized: ...  # noqa: D102
    def backward(self, dy: Tensor, x: Tensor, moments: Tensor | None, call: Call, wanted: Wanted) -> Gradients: ...  # noqa: D102


@dataclass(frozen=True)
class StepByStep:
    """The layer of any method, by the method's own functions between the four passes."""

    passes: Passes
    coefficients: Callable[[Call, Tensor, Tensor], tuple[Tensor, Tensor, Statistics]] = Call.coefficients
    """Scale, shift and the statistics used."""
    pull_back: Callable[..., Pulled] = pull_back
    """Their gradient, as :func:`calibnorm.ops.coefficients.pull_back`."""

    def forward(self, x: Tensor, call: Call) -> Normalized:
        """Return y, the moments and the statistics used."""
        with torch.no_grad(), without_autocast(x):
            m, v = self._moments(x)
            scale, shift, statistics = self.coefficients(call, m, v)
            empty = x.numel() == 0
            y = torch.empty_like(x) if empty else self.passes.affine(x, m, scale, shift, call.residual, call.relu)
            # One pixel a plane: the moments are as many numbers as x has, and in a wider dtype.
            return Normalized(y, None if pixels(x) == 1 else torch.stack((m, v)), statistics)

    def backward(self, dy: Tensor, x: Tensor, moments: Tensor | None, call: Call, wanted: Wanted) -> Gradients:
        """Return the gradients in two passes over pixels."""
        with without_autocast(x):
            return self._backward(dy, x, moments, call, wanted)

    def _backward(self, dy: Tensor, x: Tensor, moments: Tensor | None, call: Call, wanted: Wanted) -> Gradients:
        m, v = self._moments(x) if moments is None else moments.unbind()
        if x.numel() == 0:
            return _of_nothing(dy, x, (m, v), call, wanted)
        rectified, shift = None, None
        if call.relu:
            scale, shift, _ = self.coefficients(call, m, v)
            rectified = Rectified(scale, shift, call.residual)
        sum_dy, sum_dy_centred, masked = self.passes.gradient_sums(dy, x, m, rectified)
        d_residual = (dy if masked is None else masked) if wanted.residual else None
        found = self.pull_back(call, m, v, (sum_dy, sum_dy_centred), pixels(x), (wanted.x, *wanted.tensors))
        if not wanted.x:
            return Gradients(None, d_residual, found.tensors)
        assert found.slope is not None
        assert found.offset is not None
        if masked is not None:
            dy, shift = masked, None
        dx = self.passes.gradient_apply(dy, x, m, found.scale, found.slope, found.offset, shift)
        return Gradients(dx, d_residual, found.tensors)

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.numel():
            return self.passes.moments(x)
        none = x.new_zeros((0, x.shape[1]), dtype=coefficient_dtype(x))
        return none, none


def _of_nothing(dy: Tensor, x: Tensor, moments: tuple[Tensor, Tensor], call: Call, wanted: Wanted) -> Gradients:
    """Return the gradients of an input without elements, which other processes wait for where they share statistics."""
    asked = (wanted.x, *wanted.tensors)
    found = pull_back(call, *moments, moments, 1, asked)
    return Gradients(torch.zeros_like(x) if wanted.x else None, dy if wanted.residual else None, found.tensors)


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Keep autocast out: (N, C) numbers stay in the accumulation dtype, and the output keeps x's."""
    device = x.device.type
    # Dynamo of torch 2.11 cannot ask whether a device has autocast.
    known = device in ("cpu", "cuda") or torch.amp.is_autocast_available(device)
    if known and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def pixels(x: Tensor) -> int:
    """Return S, the spatial positions of an instance."""
    return math.prod(x.shape[2:])
