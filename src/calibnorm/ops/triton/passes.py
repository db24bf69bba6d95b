"""The passes over pixels in Triton, for CUDA tensors; see :mod:`calibnorm.ops.reference` for what each returns.

Sums are kept in float32 (float64 for float64) within a program and in float64 beyond it; (N, C) numbers are float64.
Work is cut by shape alone and there are no atomics, so results are bitwise repeatable. An input that is neither
contiguous nor channels_last is copied by each pass that reads it. With TRITON_INTERPRET=1 in the environment when
triton is first imported, its interpreter runs the same kernels on CPU tensors, slowly: that is for tests.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import struct

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from calibnorm.ops import inputs
from calibnorm.ops.inputs import DTYPES, like
from calibnorm.ops.reference import Rectified
from calibnorm.ops.triton.config import CONFIG
from calibnorm.ops.triton.launch import Work, run

_CAPABILITY = 8  # the first with bfloat16
_OLDEST = (3, 6)  # what comes with torch 2.11, and the oldest that these kernels were compiled with


def refuses(x: Tensor) -> str | None:
    """Return why this backend does not take x, or None."""
    where, device = (x.is_cpu, "CPU") if interpreted() else (x.is_cuda, "CUDA")
    return inputs.refuses(x, where, device) or unavailable() or (None if x.is_cpu else _too_weak(x.device))


@functools.cache
def _too_weak(device: torch.device) -> str | None:
    """Return why a card cannot run the kernels, or None."""
    major, minor = torch.cuda.get_device_capability(device)
    if major >= _CAPABILITY:
        return None
    name = torch.cuda.get_device_name(device)
    return f"it needs compute capability {_CAPABILITY}.0 or higher, and {name} has {major}.{minor}"


@functools.cache
def unavailable() -> str | None:
    """Return why the kernels cannot run here, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not interpreted():
        if torch.version.hip is not None:
            return "these kernels were never tried on AMD's cards"
        if not torch.cuda.is_available():
            return "torch finds no CUDA device"
    elif importlib.util.find_spec("numpy") is None:
        return "triton's interpreter (TRITON_INTERPRET=1) needs numpy, which is not installed"
    import triton  # this takes a second, so not before it is needed

    found, oldest = triton.__version__, ".".join(map(str, _OLDEST))
    if tuple(map(int, found.split(".")[:2])) < _OLDEST:
        return f"it needs triton {oldest} or newer, not {found}"
    return None


def runs_with() -> str:
    """Return the version of triton and what it runs on."""
    import triton

    where = "CPU tensors, in its interpreter" if interpreted() else torch.cuda.get_device_name()
    return f"triton {triton.__version__}, {where}"


@functools.cache
def interpreted() -> bool:
    """Whether triton's interpreter runs the kernels, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance over the spatial positions, each (N, C)."""
    work = Work(x)
    m, v = work.numbers(), work.numbers()
    parts = work.parts(m, v)
    work.launch("moments", work.x, *parts)
    if work.plan.splits > 1:
        total = m.numel()
        work.merge("merge_moments", *parts, m, v, total, work.pixels, work.plan.chunk, work.plan.splits)
    return m, v


def affine(
    x: Tensor, m: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None = None, relu: bool = False
) -> Tensor:
    """Return ``scale * (x - m) + shift`` (plus the residual, then rectified, where asked), laid out as x."""
    work = Work(x)
    y = torch.empty_like(work.x)
    work.launch("affine", work.x, _wide(m), _wide(scale), _wide(shift), like(residual, work.x), y, RELU=relu)
    return y


def gradient_sums(
    dy: Tensor, x: Tensor, m: Tensor, relu: Rectified | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the sums of dy and of ``dy * (x - m)``, dy masked with ``relu``, and the gradient of its residual."""
    work = Work(x)
    sums = work.numbers(), work.numbers()
    parts = work.parts(*sums)
    scale, shift, residual, masked = None, None, None, None
    if relu is not None:
        scale, shift, residual = _wide(relu.scale), _wide(relu.shift), like(relu.residual, work.x)
        masked = None if residual is None else torch.empty_like(work.x)
    given = (like(dy, work.x), work.x, _wide(m), scale, shift, residual)
    work.launch("gradient_sums", *given, masked, *parts, RELU=relu is not None)
    if work.plan.splits > 1:
        work.merge("merge_sums", *parts, *sums, sums[0].numel(), work.plan.splits)
    return *sums, masked


def gradient_apply(
    dy: Tensor, x: Tensor, m: Tensor, scale: Tensor, slope: Tensor, offset: Tensor, shift: Tensor | None = None
) -> Tensor:
    """Return ``scale * dy + slope * (x - m) + offset``, laid out as x; with ``shift``, dy is masked by a ReLU first."""
    work = Work(x)
    dx = torch.empty_like(work.x)
    numbers = (_wide(m), _wide(scale), _wide(slope), _wide(offset), None if shift is None else _wide(shift))
    work.launch("gradient_apply", like(dy, work.x), work.x, *numbers, dx, RELU=shift is not None)
    return dx


def update_running(buffers: tuple[Tensor, ...], mean: Tensor, var: Tensor, momentum: float, unbias: float) -> bool:
    """Move a running mean and variance and perhaps a count; return False, with nothing moved, where Triton cannot."""
    if (
        refuses(mean) is not None
        or any(t.device != mean.device or not t.is_contiguous() or t.is_inference() for t in (*buffers, mean, var))
        or any(t.dtype not in DTYPES for t in (*buffers[:2], mean, var))
        or any(t.dtype is not torch.int64 for t in buffers[2:])
    ):
        return False
    count = buffers[2] if len(buffers) > 2 else None
    channels = mean.numel()
    bits = struct.unpack("2q", struct.pack("2d", momentum, unbias))
    arguments = (*buffers[:2], count, mean, var, *bits, channels)
    run(mean, "coefficients", "update_running", -(-channels // CONFIG.merged), arguments, {"BC": CONFIG.merged})
    increment_version(buffers)  # autograd does not see what a kernel changes
    return True


def _wide(t: Tensor) -> Tensor:
    return t.to(torch.float64).contiguous()
