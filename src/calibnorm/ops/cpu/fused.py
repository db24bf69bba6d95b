"""The whole layer of BN, IEBN and RBN in one C call a direction, checked against the layer step by step.

Every (N, C) number is float64, sums over the batch included. A small layer takes as long in Python as in C, or longer,
and what lies between two calls pushes Python out of the processor's caches: a call does little here, and in a row.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from calibnorm.ops.coefficients import Call
from calibnorm.ops.cpu.passes import CODES, address, library, ran, running, wide
from calibnorm.ops.inputs import dense, in_two_layouts, like
from calibnorm.ops.kernel_methods import kind_of, slots_of
from calibnorm.ops.three_steps import Gradients, Normalized, Wanted

_JOB = struct.Struct("3q9i5d22P").pack
"""``cn_layer_job`` of ``csrc/kernels.h``."""
_SHAPE, _WAYS, _PIXELS = struct.Struct("3q").pack, struct.Struct("3i").pack, struct.Struct("5P").pack
_METHOD, _NUMBERS, _REST = (
    slice(struct.calcsize(before), struct.calcsize(upto))
    for before, upto in (("3q", "3q4i"), ("3q7i", "3q9i5d9P"), ("3q9i5d14P", "3q9i5d22P"))
)
"""What of a job changes from call to call in evaluation, and where the rest lies between that."""
_OF_BATCH, _GIVEN, _FOUND = range(3)
_QUIET = (1.0, 0.0)
_NONE = (0, 0)
_NO_PIXELS = _NO_GRADIENTS = (0,) * 5
_NOTHING_MOVES = (0, 0.0, 0.0, 0, 0, 0)


def forward(x: Tensor, call: Call) -> Normalized:
    """Return y, the moments where a backward may want them, and the statistics used, where they do not move on.

    Those of a batch that move on are kept with the moments, in the last two rows of (2 N + 2, C) numbers.
    """
    x, rows = dense(x)
    n, c, *_ = x.shape
    y, residual, used, moves = torch.empty_like(x), like(call.residual, x), call.statistics, _moves(call)
    kept, planes, statistics = None, 0 if x.numel() == n * c else 2 * n, _NONE
    if torch.is_grad_enabled():
        if moves is not _NOTHING_MOVES:
            kept = torch.empty((planes + 2, c), dtype=torch.float64)
            statistics = _in_rows(kept, planes)
        elif planes:
            kept = torch.empty((2, n, c), dtype=torch.float64)
    if used is None and moves is _NOTHING_MOVES:
        used = torch.empty(c, dtype=torch.float64), torch.empty(c, dtype=torch.float64)
        statistics = used[0].data_ptr(), used[1].data_ptr()
    moments = _NONE if kept is None or not planes else _in_rows(kept, 0, n)
    arrays, pixels = _arrays(call), (x.data_ptr(), address(residual), 0, y.data_ptr(), 0)  # alive until C is done
    job = _job(x, rows, call, arrays, moments, _OF_BATCH, statistics, pixels, _NO_GRADIENTS, moves)
    ran(library().forward(job))
    if moves is not _NOTHING_MOVES:
        assert call.moving is not None
        increment_version(call.moving.buffers)  # autograd does not see what C changes
    return Normalized(y, kept, used)


def backward(dy: Tensor, x: Tensor, moments: Tensor | None, call: Call, wanted: Wanted) -> Gradients:
    """Return the gradients in two passes over pixels; ``moments`` are what forward has kept."""
    x, rows = dense(x)
    n, c, *_ = x.shape
    d_x, dy_x, residual = torch.empty_like(x) if wanted.x else None, like(dy, x), like(call.residual, x)
    masked = None if residual is None else torch.empty_like(x)
    arrays = _arrays(call)
    found = [torch.empty_like(t) if want else None for t, want in zip(arrays[0], wanted.tensors, strict=False)]
    gradients = slots_of(call.step.names)([*map(address, found), 0])
    planes, source, statistics = 0 if x.numel() == n * c else 2 * n, _FOUND, _NONE
    if call.found is not None:
        statistics = call.found[0].data_ptr(), call.found[1].data_ptr()
    elif moments is not None and len(moments) == planes + 2:
        statistics = _in_rows(moments, planes)
    else:
        source = _OF_BATCH
    of_planes = _NONE if moments is None or not planes else _in_rows(moments, 0, n)
    pixels = x.data_ptr(), address(residual), dy_x.data_ptr(), address(d_x), address(masked)
    job = _job(x, rows, call, arrays, of_planes, source, statistics, pixels, gradients, _NOTHING_MOVES)
    ran(library().backward(job))
    if not arrays[2]:
        found = [None if g is None else g.to(t.dtype) for g, t in zip(found, call.tensors, strict=True)]
    return Gradients(d_x, (dy if masked is None else masked) if wanted.residual else None, found)


def prepared(x: Tensor, call: Call) -> Callable[[Tensor, Tensor | None, bool], Tensor]:
    """Return the forward of a layer in evaluation, without gradients, whose job is packed but for the pixels.

    It takes an input, perhaps a residual, and whether to rectify. The call's tensors and statistics are contiguous, in
    float32, and stay where they are.
    """
    job = _job(x, True, call, _arrays(call), _NONE, _GIVEN, _NONE, _NO_PIXELS, _NO_GRADIENTS, _NOTHING_MOVES)
    method, numbers, rest = job[_METHOD], job[_NUMBERS], job[_REST]

    def run(x: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
        x, rows = dense(in_two_layouts(x))
        n, c, *_ = x.shape
        y, residual = torch.empty_like(x), like(residual, x)
        shape, ways = _SHAPE(n, c, x.numel() // (n * c)), _WAYS(CODES[x.dtype], rows, relu)
        pixels = _PIXELS(x.data_ptr(), address(residual), 0, y.data_ptr(), 0)
        ran(library().forward(b"".join((shape, method, ways, numbers, pixels, rest))))
        return y

    return run


def _moves(call: Call) -> tuple[int | float, ...]:
    """Return how C moves the running statistics, and where they and the count of batches lie, if it is to move any."""
    places = None if call.moving is None else running(call.moving.buffers)
    if call.moving is None or places is None:
        return _NOTHING_MOVES
    buffers, momentum, unbias = call.moving
    return (CODES[buffers[0].dtype], momentum, unbias, *places)


def _in_rows(numbers: Tensor, first: int, rows: int = 1) -> tuple[int, int]:
    """Return where the row ``first`` of C float64 numbers lies, and the one ``rows`` further."""
    start, size = numbers.data_ptr(), 8 * numbers.shape[-1]
    return start + first * size, start + (first + rows) * size


def _arrays(call: Call) -> tuple[Sequence[Tensor], list[int], bool]:
    """Return the learnable tensors and the given statistics, their addresses, and whether all are in float32."""
    arrays: Sequence[Tensor] = call.tensors if call.statistics is None else (*call.tensors, *call.statistics)
    addresses = []
    for t in arrays:
        if t.dtype is not torch.float32 or not t.is_contiguous() or t.is_neg():
            arrays = [*map(wide, arrays)]
            return arrays, [t.data_ptr() for t in arrays], False
        addresses.append(t.data_ptr())
    return arrays, addresses, True


def _job(
    x: Tensor,
    rows: bool,
    call: Call,
    arrays: tuple[Sequence[Tensor], list[int], bool],
    moments: tuple[int, int],
    source: int,
    statistics: tuple[int, int],
    pixels: tuple[int, ...],
    found: tuple[int, ...],
    moves: tuple[int | float, ...],
) -> bytes:
    """Return the ``cn_layer_job``; ``statistics`` are the addresses of those of a batch, to be found or found."""
    method, names, eps, noise, _ = call.step
    kind = kind_of(method)
    assert kind is not None
    n, c, *_ = x.shape
    _, addresses, narrow = arrays
    if call.statistics is not None:
        source, statistics, addresses = _GIVEN, (addresses[-2], addresses[-1]), addresses[:-2]
    dtype, momentum, unbias, *moved = moves
    return _JOB(
        n, c, x.numel() // (n * c),
        *kind, source, CODES[x.dtype], rows, call.relu, narrow, dtype,
        eps, *(noise or _QUIET), momentum, unbias,
        *moments, *statistics,
        *slots_of(names)((*addresses, 0)),
        *pixels,
        *found,
        *moved,
    )  # fmt: skip
