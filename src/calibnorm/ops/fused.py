"""The whole layer of BN, IEBN and RBN in one C call a direction, checked against :mod:`calibnorm.ops.composed`.

Every (N, C) number is float64, sums over the batch included.
"""

from __future__ import annotations

import functools
import operator
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from calibnorm.methods import BN, IEBN, RBN, Method
from calibnorm.ops import cpu
from calibnorm.ops.coefficients import Call, Step
from calibnorm.ops.composed import Gradients, Normalized, Wanted, pixels

_CENTERS = {None: 0, "mean": 1, "std": 2}
_GATES = {None: 0, "mean": 1, "std": 2, "input": 3}
_ROLES = {
    "weight": "weight",
    "bias": "bias",
    "center_weight": "center_weight",
    "gate_weight": "gate_weight",
    "gate_bias": "gate_bias",
    "scale_weight": "gate_weight",
    "scale_bias": "gate_bias",
}
"""What C calls the learnable tensors."""
_LAYER = struct.Struct("3q4i3d20P4i5P")
"""``cn_layer_job`` of ``csrc/kernels.h``."""


class _Kind(NamedTuple):
    """A method in C's terms."""

    center: int
    gate: int
    gated: int


@functools.lru_cache(maxsize=256)
def _kind(method: Method) -> _Kind | None:
    """Return what C calls the method, or None where it does not know it."""
    gated = ("weight" in method.gated) + 2 * ("bias" in method.gated)
    if type(method) is BN:
        return _Kind(0, 0, 0)
    if type(method) is IEBN and method.operator == "linear" and method.activation == "sigmoid":
        return _Kind(0, _GATES["input"], gated)
    if type(method) is RBN and method.restrict == "sigmoid" and not (method.spatial_center or method.spatial_scale):
        center = _CENTERS[method.center_stat if method.centering else None]
        return _Kind(center, _GATES[method.scale_stat if method.scaling else None], gated)
    return None


class Fused:
    """The steps of the methods that C knows."""

    def takes(self, step: Step) -> bool:
        """Whether C knows the method."""
        return _kind(step.method) is not None

    def forward(self, x: Tensor, call: Call) -> Normalized:
        """Return y, the moments and the statistics used."""
        x, rows = cpu.dense(x)
        y, residual = torch.empty_like(x), cpu.like(call.residual, x)
        n, c = x.shape[:2]
        moments = None if pixels(x) == 1 else x.new_empty((2, n, c), dtype=torch.float64)
        used = call.statistics
        if used is None:
            used = x.new_empty(c, dtype=torch.float64), x.new_empty(c, dtype=torch.float64)
        arrays = _Arrays.of(call)
        _run(
            cpu.library().forward, x, rows, moments, call, arrays,
            mean_var=arrays.statistics or used, residual=residual, y=y,
        )  # fmt: skip
        return Normalized(y, moments, used)

    def backward(self, dy: Tensor, x: Tensor, moments: Tensor | None, call: Call, wanted: Wanted) -> Gradients:
        """Return the gradients in two passes over pixels."""
        x, rows = cpu.dense(x)
        d_x, residual = torch.empty_like(x) if wanted.x else None, cpu.like(call.residual, x)
        masked = None if residual is None else torch.empty_like(x)
        arrays = _Arrays.of(call)
        found = [torch.empty_like(t) if want else None for t, want in zip(arrays.tensors, wanted.tensors, strict=True)]
        _run(
            cpu.library().backward, x, rows, moments, call, arrays,
            mean_var=arrays.statistics, residual=residual, dy=cpu.like(dy, x), y=d_x, masked=masked, found=found,
        )  # fmt: skip
        d_residual = (dy if masked is None else masked) if wanted.residual else None
        typed = [None if g is None else g.to(t.dtype) for g, t in zip(found, call.tensors, strict=True)]
        return Gradients(d_x, d_residual, typed)


class _Arrays(NamedTuple):
    """The (C,) tensors as C reads them: contiguous, all in float32 or else all in float64."""

    tensors: tuple[Tensor, ...]
    statistics: tuple[Tensor, ...]
    """The given ones; empty where the batch's are used."""
    narrow: bool

    @classmethod
    def of(cls, call: Call) -> _Arrays:
        """Return a call's."""
        tensors, statistics = call.tensors, call.statistics or ()
        if all(t.dtype is torch.float32 and t.is_contiguous() for t in (*tensors, *statistics)):
            return cls(tensors, statistics, True)
        tensors, statistics = (tuple(t.double().contiguous() for t in group) for group in (tensors, statistics))
        return cls(tensors, statistics, False)


def _run(
    function: Callable[[bytes], int],
    x: Tensor,
    rows: bool,
    moments: Tensor | None,
    call: Call,
    arrays: _Arrays,
    *,
    mean_var: tuple[Tensor, ...],
    residual: Tensor | None,
    y: Tensor | None,
    dy: Tensor | None = None,
    masked: Tensor | None = None,
    found: Sequence[Tensor | None] = (),
) -> None:
    """Call C with a ``cn_layer_job`` of these."""
    step = call.step
    n, c = x.shape[:2]
    kind, slots = _kind(step.method), _slots(step.names)
    assert kind is not None
    m = _address(moments)
    mean, var = map(_address, mean_var or (None, None))
    job = _LAYER.pack(
        n, c, pixels(x),
        *kind, call.statistics is not None,
        step.eps, *(step.noise or (1.0, 0.0)),
        m, m and m + 8 * n * c, mean, var,
        *slots((*map(_address, arrays.tensors), 0)),
        0, 0, 0, 0, 0, 0,
        *slots((*map(_address, found or [None] * len(arrays.tensors)), 0)),
        cpu.CODES[x.dtype], rows, call.relu, arrays.narrow,
        x.data_ptr(), _address(residual), _address(dy), _address(y), _address(masked),
    )  # fmt: skip
    cpu.ran(function(job))


@functools.lru_cache(maxsize=256)
def _slots(names: tuple[str, ...]) -> Callable[[tuple[int, ...]], tuple[int, ...]]:
    """Return what picks C's five learnable tensors from those of ``names`` and a last one that stands for none."""
    roles = [_ROLES[name] for name in names]
    places = ("weight", "bias", "center_weight", "gate_weight", "gate_bias")
    return operator.itemgetter(*(roles.index(role) if role in roles else -1 for role in places))


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


FUSED = Fused()
