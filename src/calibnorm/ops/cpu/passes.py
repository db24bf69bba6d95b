"""The passes over pixels in C, for CPU tensors; see :mod:`calibnorm.ops.reference` for what each returns.

Sums are kept in float32 (float64 for float64) within a tile and in float64 beyond it; (N, C) numbers are float64. Work
is cut by shape alone, so results are bitwise repeatable and the same for any number of threads. An input that is
neither contiguous nor channels_last is copied by each pass that reads it.
"""

from __future__ import annotations

import struct

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from calibnorm.ops import inputs
from calibnorm.ops.cpu.library import Library, load
from calibnorm.ops.inputs import dense, like
from calibnorm.ops.reference import Rectified

_RUNNING = (torch.float32, torch.float64)
_MOVE = struct.Struct("q5P2di").pack
"""``cn_running_job`` of ``csrc/entry.c``."""
CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


def refuses(x: Tensor) -> str | None:
    """Return why this backend does not take x, or None."""
    return inputs.refuses(x, x.is_cpu, "CPU") or unavailable()


def unavailable() -> str | None:
    """Return why the kernels cannot run here, or None."""
    found = load()
    return found if isinstance(found, str) else None


def runs_with() -> str:
    """Return the instruction set and the threads that the kernels use."""
    kernels = library()
    return f"{kernels.instructions} instructions, {kernels.threads}"


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance over the spatial positions, each (N, C)."""
    x, rows = dense(x)
    m, v = _numbers(x), _numbers(x)
    ran(library().moments(*_shape(x, rows), *map(address, (x, m, v))))
    return m, v


def affine(
    x: Tensor, m: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None = None, relu: bool = False
) -> Tensor:
    """Return ``scale * (x - m) + shift`` (plus the residual, then rectified, where asked), laid out as x."""
    x, rows = dense(x)
    given = x, wide(m), wide(scale), wide(shift), like(residual, x)
    y = torch.empty_like(x)
    ran(library().affine(*_shape(x, rows), *map(address, given), relu, address(y)))
    return y


def gradient_sums(
    dy: Tensor, x: Tensor, m: Tensor, relu: Rectified | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the sums of dy and of ``dy * (x - m)``, dy masked with ``relu``, and the gradient of its residual."""
    x, rows = dense(x)
    scale, shift, residual, masked = None, None, None, None
    if relu is not None:
        scale, shift, residual = wide(relu.scale), wide(relu.shift), like(relu.residual, x)
        masked = None if residual is None else torch.empty_like(x)
    given = like(dy, x), x, wide(m), scale, shift, residual
    sums = _numbers(x), _numbers(x)
    outputs = map(address, (masked, *sums))
    ran(library().gradient_sums(*_shape(x, rows), *map(address, given), relu is not None, *outputs))
    return *sums, masked


def gradient_apply(
    dy: Tensor, x: Tensor, m: Tensor, scale: Tensor, slope: Tensor, offset: Tensor, shift: Tensor | None = None
) -> Tensor:
    """Return ``scale * dy + slope * (x - m) + offset``, laid out as x; with ``shift``, dy is masked by a ReLU first."""
    x, rows = dense(x)
    numbers = wide(m), wide(scale), wide(slope), wide(offset), None if shift is None else wide(shift)
    given = like(dy, x), x, *numbers
    dx = torch.empty_like(x)
    ran(library().gradient_apply(*_shape(x, rows), *map(address, given), shift is not None, address(dx)))
    return dx


def update_running(buffers: tuple[Tensor, ...], mean: Tensor, var: Tensor, momentum: float, unbias: float) -> bool:
    """Move a running mean and variance and perhaps a count; return False, with nothing moved, where C cannot."""
    if mean.dtype is not torch.float64 or not (mean.is_contiguous() and var.is_contiguous()):
        return False
    to = None if refuses(mean) else running(buffers)
    if to is None:
        return False
    places = mean.data_ptr(), var.data_ptr(), *to
    library().update_running(_MOVE(mean.numel(), *places, momentum, unbias, CODES[buffers[0].dtype]))
    increment_version(buffers)  # autograd does not see what C changes
    return True


def running(buffers: tuple[Tensor, ...]) -> list[int] | None:
    """Return where running statistics and their count, or 0, lie, or None where C cannot move them."""
    dtype = buffers[0].dtype
    if dtype not in _RUNNING:
        return None
    places = []
    for t, its_dtype in zip(buffers, (dtype, dtype, torch.int64), strict=False):
        if t.dtype is not its_dtype or not t.is_cpu or not t.is_contiguous() or t.is_inference():
            return None
        places.append(t.data_ptr())
    return places if len(places) == 3 else [*places, 0]


def library() -> Library:
    """Return the kernels, where they run."""
    found = load()
    assert isinstance(found, Library), found
    return found


def ran(short_of_memory: int) -> None:
    """Raise where a C function said that it ran out of memory."""
    if short_of_memory:
        raise MemoryError("calibnorm: no memory for the partial sums of a large plane")


def address(t: Tensor | None) -> int:
    """Return where a tensor's numbers lie, 0 for none: NULL in C."""
    return 0 if t is None else t.data_ptr()


def _numbers(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[:2], dtype=torch.float64)


def wide(t: Tensor) -> Tensor:
    """Return t as C reads numbers of channels; asking first is cheaper than two calls of torch that return t itself."""
    if t.dtype is torch.float64 and t.is_contiguous() and not t.is_neg():
        return t
    return t.to(torch.float64).contiguous().resolve_neg()


def _shape(x: Tensor, rows: bool) -> tuple[int, bool, int, int, int]:
    n, c = x.shape[:2]
    return CODES[x.dtype], rows, n, c, x.numel() // (n * c)
