"""The passes over pixels in C, for CPU tensors; see :mod:`calibnorm.ops.reference` for what each returns.

Sums are kept in float32 (float64 for float64) within a tile and in float64 beyond it; (N, C) numbers are float64. Work
is cut by shape alone, so results are bitwise repeatable and the same for any number of threads. An input that is
neither contiguous nor channels_last is copied by each pass that reads it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from calibnorm.ops.library import Library, load
from calibnorm.ops.reference import Rectified

CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def refuses(x: Tensor) -> str | None:
    """Return why this backend does not take x, or None."""
    if not x.is_cpu or x.dtype not in CODES or x.layout is not torch.strided:
        return f"it takes strided CPU tensors of float32, float64, bfloat16 and float16, not {x.dtype} on {x.device}"
    if x.is_neg():
        return "it does not take lazily negated views"
    # A mode that watches operations (FakeTensorMode, a FLOP counter) would not see the C calls.
    if torch._C._len_torch_dispatch_stack():
        return "a torch dispatch mode is active, which must see every operation"
    return unavailable()


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
    ran(library().moments(*_shape(x, rows), x.data_ptr(), m.data_ptr(), v.data_ptr()))
    return m, v


def affine(
    x: Tensor, m: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None = None, relu: bool = False
) -> Tensor:
    """Return ``scale * (x - m) + shift`` (plus the residual, then rectified, where asked), laid out as x."""
    x, rows = dense(x)
    m, scale, shift = _wide(m), _wide(scale), _wide(shift)
    residual = like(residual, x)
    y = torch.empty_like(x)
    ran(
        library().affine(
            *_shape(x, rows),
            x.data_ptr(),
            m.data_ptr(),
            scale.data_ptr(),
            shift.data_ptr(),
            None if residual is None else residual.data_ptr(),
            relu,
            y.data_ptr(),
        )
    )
    return y


def gradient_sums(
    dy: Tensor, x: Tensor, m: Tensor, relu: Rectified | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the sums of dy and of ``dy * (x - m)``, dy masked with ``relu``, and the gradient of its residual."""
    x, rows = dense(x)
    same = like(dy, x)
    assert same is not None
    m = _wide(m)
    sum_dy, sum_dy_centred = _numbers(x), _numbers(x)
    outputs = (sum_dy.data_ptr(), sum_dy_centred.data_ptr())
    shape = _shape(x, rows)
    pixels = (same.data_ptr(), x.data_ptr(), m.data_ptr())
    if relu is None:
        ran(library().gradient_sums(*shape, *pixels, None, None, None, False, None, *outputs))
        return sum_dy, sum_dy_centred, None
    scale, shift, residual = _wide(relu.scale), _wide(relu.shift), like(relu.residual, x)
    masked = None if residual is None else torch.empty_like(x)
    ran(
        library().gradient_sums(
            *shape,
            *pixels,
            scale.data_ptr(),
            shift.data_ptr(),
            None if residual is None else residual.data_ptr(),
            True,
            None if masked is None else masked.data_ptr(),
            *outputs,
        )
    )
    return sum_dy, sum_dy_centred, masked


def gradient_apply(
    dy: Tensor, x: Tensor, m: Tensor, scale: Tensor, slope: Tensor, offset: Tensor, shift: Tensor | None = None
) -> Tensor:
    """Return ``scale * dy + slope * (x - m) + offset``, laid out as x; with ``shift``, dy is masked by a ReLU first."""
    x, rows = dense(x)
    same = like(dy, x)
    assert same is not None
    m, scale, slope, offset = _wide(m), _wide(scale), _wide(slope), _wide(offset)
    shift = None if shift is None else _wide(shift)
    dx = torch.empty_like(x)
    ran(
        library().gradient_apply(
            *_shape(x, rows),
            same.data_ptr(),
            x.data_ptr(),
            m.data_ptr(),
            scale.data_ptr(),
            slope.data_ptr(),
            offset.data_ptr(),
            None if shift is None else shift.data_ptr(),
            shift is not None,
            dx.data_ptr(),
        )
    )
    return dx


def update_running(buffers: tuple[Tensor, ...], mean: Tensor, var: Tensor, momentum: float, unbias: float) -> bool:
    """Move a running mean and variance and perhaps a count; return False, with nothing moved, where C cannot.

    Args:
        buffers: (C,) of float32 or of float64, twice; then the count, of int64.
        mean: The batch's mean, (C,).
        var: The batch's biased variance, (C,).
        momentum: Weight of the batch.
        unbias: What makes the batch's variance unbiased.
    """
    running = buffers[0].dtype
    dtypes = (running, running, torch.int64)
    if (
        mean.dtype is not torch.float64
        or running not in (torch.float32, torch.float64)
        or refuses(mean) is not None
        or not (mean.is_contiguous() and var.is_contiguous())
        or any(
            t.dtype is not dtype or not t.is_cpu or not t.is_contiguous() or t.is_inference()
            for t, dtype in zip(buffers, dtypes, strict=False)
        )
    ):
        return False
    count = buffers[2].data_ptr() if len(buffers) > 2 else None
    running_mean, running_var = buffers[0].data_ptr(), buffers[1].data_ptr()
    batch = mean.data_ptr(), var.data_ptr()
    library().update_running(CODES[running], mean.numel(), running_mean, running_var, count, *batch, momentum, unbias)
    return True


def library() -> Library:
    """Return the kernels, where they run."""
    found = load()
    assert isinstance(found, Library), found
    return found


def ran(short_of_memory: int) -> None:
    """Raise where a C function said that it ran out of memory."""
    if short_of_memory:
        raise MemoryError("calibnorm: no memory for the partial sums of a large plane")


def dense(x: Tensor) -> tuple[Tensor, bool]:
    """Return x or a dense copy of it, and whether its channels are innermost."""
    if x.is_contiguous():
        return x, x.numel() == x.shape[0] * x.shape[1]  # one pixel a plane: rows of channels
    if x.ndim in _CHANNELS_LAST:
        if x.is_contiguous(memory_format=_CHANNELS_LAST[x.ndim]):
            return x, True
        if x.stride(1) == 1:  # a slice of a channels_last tensor
            return x.contiguous(memory_format=_CHANNELS_LAST[x.ndim]), True
    elif x.movedim(1, -1).is_contiguous():
        return x, True
    return dense(x.contiguous())


def like(t: Tensor | None, x: Tensor) -> Tensor | None:
    """Return t in the dtype and the strides of x, which is dense."""
    if t is None or (t.stride() == x.stride() and t.dtype == x.dtype):
        return t
    return torch.empty_like(x).copy_(t)


def _numbers(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[:2], dtype=torch.float64)


def _wide(t: Tensor) -> Tensor:
    return t.to(torch.float64).contiguous()


def _shape(x: Tensor, rows: bool) -> tuple[int, bool, int, int, int]:
    n, c = x.shape[:2]
    return CODES[x.dtype], rows, n, c, x.numel() // (n * c)
