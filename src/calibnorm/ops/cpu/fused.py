"""The whole layer of BN, IEBN and RBN in one C call a direction, checked against the layer step by step.

Every (N, C) number is float64, sums over the batch included. A small layer takes as long in Python as in C, or longer,
and what lies between two calls pushes Python out of the processor's caches: a call does little here, and in a row.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from calibnorm.ops.coefficients import Call
from calibnorm.ops.cpu.passes import CODES, address, library, ran
from calibnorm.ops.inputs import dense, like
from calibnorm.ops.kernel_methods import kind_of, slots_of
from calibnorm.ops.three_steps import Gradients, Normalized, Wanted

_JOB = struct.Struct("3q8i3d19P").pack
"""``cn_layer_job`` of ``csrc/kernels.h``."""
_OF_BATCH, _GIVEN, _FOUND = range(3)
_QUIET = (1.0, 0.0)
_NO_GRADIENTS = (0,) * 5


def forward(x: Tensor, call: Call) -> Normalized:
    """Return y, the moments where a backward may want them, and the statistics used."""
    x, rows = dense(x)
    n, c, *_ = x.shape
    y, residual, used = torch.empty_like(x), like(call.residual, x), call.statistics
    moments, statistics = None, (0, 0)
    if used is None:
        used = torch.empty(c, dtype=torch.float64), torch.empty(c, dtype=torch.float64)
        statistics = used[0].data_ptr(), used[1].data_ptr()
    if torch.is_grad_enabled() and x.numel() != n * c:
        moments = torch.empty((2, n, c), dtype=torch.float64)
    arrays, pixels = _arrays(call), (x.data_ptr(), address(residual), 0, y.data_ptr(), 0)  # alive until C is done
    ran(library().forward(_job(x, rows, call, arrays, moments, statistics, pixels, _NO_GRADIENTS)))
    return Normalized(y, moments, used)


def backward(dy: Tensor, x: Tensor, moments: Tensor | None, call: Call, wanted: Wanted) -> Gradients:
    """Return the gradients in two passes over pixels."""
    x, rows = dense(x)
    d_x, dy_x, residual = torch.empty_like(x) if wanted.x else None, like(dy, x), like(call.residual, x)
    masked = None if residual is None else torch.empty_like(x)
    arrays = _arrays(call)
    found = [torch.empty_like(t) if want else None for t, want in zip(arrays[0], wanted.tensors, strict=False)]
    gradients = slots_of(call.step.names)([*map(address, found), 0])
    statistics = (0, 0) if call.found is None else (call.found[0].data_ptr(), call.found[1].data_ptr())
    pixels = x.data_ptr(), address(residual), dy_x.data_ptr(), address(d_x), address(masked)
    ran(library().backward(_job(x, rows, call, arrays, moments, statistics, pixels, gradients)))
    if not arrays[2]:
        found = [None if g is None else g.to(t.dtype) for g, t in zip(found, call.tensors, strict=True)]
    return Gradients(d_x, (dy if masked is None else masked) if wanted.residual else None, found)


def _arrays(call: Call) -> tuple[Sequence[Tensor], list[int], bool]:
    """Return the learnable tensors and the given statistics, their addresses, and whether all are in float32."""
    arrays: Sequence[Tensor] = call.tensors if call.statistics is None else (*call.tensors, *call.statistics)
    addresses = []
    for t in arrays:
        if t.dtype is not torch.float32 or not t.is_contiguous():
            arrays = [t.double().contiguous() for t in arrays]
            return arrays, [t.data_ptr() for t in arrays], False
        addresses.append(t.data_ptr())
    return arrays, addresses, True


def _job(
    x: Tensor,
    rows: bool,
    call: Call,
    arrays: tuple[Sequence[Tensor], list[int], bool],
    moments: Tensor | None,
    statistics: tuple[int, int],
    pixels: tuple[int, ...],
    found: tuple[int, ...],
) -> bytes:
    """Return the ``cn_layer_job``; ``statistics`` are the addresses of those of a batch, to be found or found."""
    method, names, eps, noise, _ = call.step
    kind = kind_of(method)
    assert kind is not None
    n, c, *_ = x.shape
    _, addresses, narrow = arrays
    source = _OF_BATCH if call.found is None else _FOUND
    if call.statistics is not None:
        source, statistics, addresses = _GIVEN, (addresses[-2], addresses[-1]), addresses[:-2]
    m = v = 0
    if moments is not None:
        m = moments.data_ptr()
        v = m + 8 * n * c
    return _JOB(
        n, c, x.numel() // (n * c),
        *kind, source, CODES[x.dtype], rows, call.relu, narrow,
        eps, *(noise or _QUIET),
        m, v, *statistics,
        *slots_of(names)((*addresses, 0)),
        *pixels,
        *found,
    )  # fmt: skip
