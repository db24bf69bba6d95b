"""The whole layer of BN, IEBN and RBN in one C call a direction, checked against the layer step by step.

Every (N, C) number is float64, sums over the batch included.
"""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from calibnorm.ops.coefficients import Call
from calibnorm.ops.cpu.passes import CODES, address, library, ran
from calibnorm.ops.inputs import dense, like
from calibnorm.ops.kernel_methods import kind_of, slots_of
from calibnorm.ops.statistics import Statistics
from calibnorm.ops.three_steps import Gradients, Normalized, Wanted

_STEP = struct.Struct("3q4i3d20P")
"""``cn_coefficient_job`` of ``csrc/kernels.h``, the first part of ``cn_layer_job``."""
_PIXELS = struct.Struct("4i5P")
"""The second part: dtype, rows, relu and narrow; x, residual, dy, y and masked."""
_SCRATCH = (0,) * 6
_NONE = (0,) * 5


def forward(x: Tensor, call: Call) -> Normalized:
    """Return y, the moments and the statistics used."""
    x, rows = dense(x)
    n, c = x.shape[:2]
    y, residual = torch.empty_like(x), like(call.residual, x)
    moments = None if x.numel() == n * c else torch.empty((2, n, c), dtype=torch.float64)
    used = call.statistics or (torch.empty(c, dtype=torch.float64), torch.empty(c, dtype=torch.float64))
    arrays, narrow = _arrays(call)
    pixels = _PIXELS.pack(CODES[x.dtype], rows, call.relu, narrow, x.data_ptr(), address(residual), 0, y.data_ptr(), 0)
    ran(library().forward(_step(x, call, arrays, moments, used) + pixels))
    return Normalized(y, moments, used)


def backward(dy: Tensor, x: Tensor, moments: Tensor | None, call: Call, wanted: Wanted) -> Gradients:
    """Return the gradients in two passes over pixels."""
    x, rows = dense(x)
    d_x, same, residual = torch.empty_like(x) if wanted.x else None, like(dy, x), like(call.residual, x)
    masked = None if residual is None else torch.empty_like(x)
    arrays, narrow = _arrays(call)
    found = [torch.empty_like(t) if want else None for t, want in zip(arrays, wanted.tensors, strict=False)]
    places = slots_of(call.step.names)([*map(address, found), 0])
    numbers = (x.data_ptr(), address(residual), address(same), address(d_x), address(masked))
    pixels = _PIXELS.pack(CODES[x.dtype], rows, call.relu, narrow, *numbers)
    ran(library().backward(_step(x, call, arrays, moments, None, places) + pixels))
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
    m = address(moments)
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
