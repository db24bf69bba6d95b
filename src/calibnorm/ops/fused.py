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
from calibnorm.ops.composed import Gradients, Normalized, Wanted
from calibnorm.ops.statistics import Statistics

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
_STEP = struct.Struct("3q4i3d20P")
"""``cn_coefficient_job`` of ``csrc/kernels.h``, the first part of ``cn_layer_job``."""
_PIXELS = struct.Struct("4i5P")
"""The second part: dtype, rows, relu and narrow; x, residual, dy, y and masked."""
_SCRATCH = (0,) * 6
_NONE = (0,) * 5


class _Kind(NamedTuple):
    """A method in C's terms."""

    center: int
    gate: int
    gated: int


@functools.lru_cache(maxsize=256)
def kind_of(method: Method) -> _Kind | None:
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
        return kind_of(step.method) is not None

    def forward(self, x: Tensor, call: Call) -> Normalized:
        """Return y, the moments and the statistics used."""
        x, rows = cpu.dense(x)
        n, c = x.shape[:2]
        y, residual = torch.empty_like(x), cpu.like(call.residual, x)
        moments = None if x.numel() == n * c else torch.empty((2, n, c), dtype=torch.float64)
        used = call.statistics or (torch.empty(c, dtype=torch.float64), torch.empty(c, dtype=torch.float64))
        arrays, narrow = _arrays(call)
        pixels = _PIXELS.pack(
            cpu.CODES[x.dtype], rows, call.relu, narrow, x.data_ptr(), _address(residual), 0, y.data_ptr(), 0
        )
        cpu.ran(cpu.library().forward(_step(x, call, arrays, moments, used) + pixels))
        return Normalized(y, moments, used)

    def backward(self, dy: Tensor, x: Tensor, moments: Tensor | None, call: Call, wanted: Wanted) -> Gradients:
        """Return the gradients in two passes over pixels."""
        x, rows = cpu.dense(x)
        d_x, same, residual = torch.empty_like(x) if wanted.x else None, cpu.like(dy, x), cpu.like(call.residual, x)
        masked = None if residual is None else torch.empty_like(x)
        arrays, narrow = _arrays(call)
        found = [torch.empty_like(t) if want else None for t, want in zip(arrays, wanted.tensors, strict=False)]
        places = slots_of(call.step.names)([*map(_address, found), 0])
        numbers = (x.data_ptr(), _address(residual), _address(same), _address(d_x), _address(masked))
        pixels = _PIXELS.pack(cpu.CODES[x.dtype], rows, call.relu, narrow, *numbers)
        cpu.ran(cpu.library().backward(_step(x, call, arrays, moments, None, places) + pixels))
        if not narrow:
            found = [None if g is None else g.to(t.dtype) for g, t in zip(found, call.tensors, strict=True)]
        return Gradients(d_x, (dy if masked is None else masked) if wanted.residual else None, found)


def _arrays(call: Call) -> tuple[tuple[Tensor, ...], bool]:
    """Return the learnable tensors and the given statistics, contiguous, and whether in float32; else in float64."""
    arrays = call.tensors if call.statistics is None else (*call.tensors, *call.statistics)
    for t in arrays:
        if t.dtype is not torch.float32 or not t.is_contiguous():
            return tuple(t.double().contiguous() for t in arrays), False
    return arrays, True


def _step(
    x: Tensor,
    call: Call,
    arrays: tuple[Tensor, ...],
    moments: Tensor | None,
    batch: Statistics | None,
    found: tuple[int, ...] = _NONE,
) -> bytes:
    """Return the ``cn_coefficient_job``: statistics go to ``batch``, gradients of learnable tensors to ``found``."""
    method, names, eps, noise, _ = call.step
    kind = kind_of(method)
    assert kind is not None
    n, c = x.shape[:2]
    m = _address(moments)
    addresses = [t.data_ptr() for t in arrays]
    fixed = call.statistics is not None
    mean, var = 0, 0
    if fixed:
        *addresses, mean, var = addresses
    elif batch is not None:
        mean, var = batch[0].data_ptr(), batch[1].data_ptr()
    learnable = slots_of(names)([*addresses, 0])
    numbers = (m, m and m + 8 * n * c, mean, var)
    sizes = (n, c, x.numel() // (n * c))
    return _STEP.pack(*sizes, *kind, fixed, eps, *(noise or (1.0, 0.0)), *numbers, *learnable, *_SCRATCH, *found)


@functools.lru_cache(maxsize=256)
def slots_of(names: tuple[str, ...]) -> Callable[[Sequence[int]], tuple[int, ...]]:
    """Return what picks C's five learnable tensors from those of ``names`` and a last one that stands for none."""
    roles = [_ROLES[name] for name in names]
    places = ("weight", "bias", "center_weight", "gate_weight", "gate_bias")
    return operator.itemgetter(*(roles.index(role) if role in roles else -1 for role in places))


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


FUSED = Fused()
