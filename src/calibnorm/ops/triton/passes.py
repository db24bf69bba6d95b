"""The passes over pixels in Triton, for CUDA tensors; see :mod:`calibnorm.ops.reference` for what each returns.

Sums are kept in float32 (float64 for float64) within a program and in float64 beyond it; (N, C) numbers are float64.
Work is cut by shape alone and there are no atomics, so results are bitwise repeatable. An input that is neither
contiguous nor channels_last is copied by each pass that reads it. With TRITON_INTERPRET=1 in the environment when
triton is first imported, its interpreter runs the same kernels on CPU tensors, slowly: that is for tests.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from calibnorm.ops.cpu import dense, like
from calibnorm.ops.reference import Rectified
from calibnorm.ops.triton.config import CONFIG, Plan, plan

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_BFLOAT16_SINCE = 8  # compute capability; triton's other types start with 7, which fewer and fewer cards have


def refuses(x: Tensor) -> str | None:
    """Return why this backend does not take x, or None."""
    device = "cpu" if interpreted() else "cuda"
    if x.device.type != device or x.dtype not in _DTYPES or x.layout is not torch.strided:
        kinds = "float32, float64, bfloat16 and float16"
        return f"it takes strided {device.upper()} tensors of {kinds}, not {x.dtype} on {x.device}"
    if x.is_neg():
        return "it does not take lazily negated views"
    # A mode that watches operations (FakeTensorMode, a FLOP counter) would not see the launches.
    if torch._C._len_torch_dispatch_stack():
        return "a torch dispatch mode is active, which must see every operation"
    if not x.is_cpu and torch.cuda.get_device_capability(x.device)[0] < _BFLOAT16_SINCE:
        return f"it needs compute capability {_BFLOAT16_SINCE}.0 or higher"
    return unavailable()


@functools.cache
def unavailable() -> str | None:
    """Return why the kernels cannot run here, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not interpreted() and not torch.cuda.is_available():
        return "torch finds no CUDA device"
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
    work = _Work(x)
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
    work = _Work(x)
    y = torch.empty_like(work.x)
    work.launch("affine", work.x, _wide(m), _wide(scale), _wide(shift), like(residual, work.x), y, RELU=relu)
    return y


def gradient_sums(
    dy: Tensor, x: Tensor, m: Tensor, relu: Rectified | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the sums of dy and of ``dy * (x - m)``, dy masked with ``relu``, and the gradient of its residual."""
    work = _Work(x)
    sums = work.numbers(), work.numbers()
    parts = work.parts(*sums)
    scale, shift, residual, masked = None, None, None, None
    if relu is not None:
        scale, shift, residual = _wide(relu.scale), _wide(relu.shift), like(relu.residual, work.x)
        masked = None if residual is None else torch.empty_like(work.x)
    inputs = (like(dy, work.x), work.x, _wide(m), scale, shift, residual)
    work.launch("gradient_sums", *inputs, masked, *parts, RELU=relu is not None)
    if work.plan.splits > 1:
        work.merge("merge_sums", *parts, *sums, sums[0].numel(), work.plan.splits)
    return *sums, masked


def gradient_apply(
    dy: Tensor, x: Tensor, m: Tensor, scale: Tensor, slope: Tensor, offset: Tensor, shift: Tensor | None = None
) -> Tensor:
    """Return ``scale * dy + slope * (x - m) + offset``, laid out as x; with ``shift``, dy is masked by a ReLU first."""
    work = _Work(x)
    dx = torch.empty_like(work.x)
    numbers = (_wide(m), _wide(scale), _wide(slope), _wide(offset), None if shift is None else _wide(shift))
    work.launch("gradient_apply", like(dy, work.x), work.x, *numbers, dx, RELU=shift is not None)
    return dx


class _Work:
    """One pass: a dense input, how it is cut, and the launches."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.rows = dense(x)
        n, c = x.shape[:2]
        self.pixels = x.numel() // (n * c)
        self.plan: Plan = plan(self.rows, n, c, self.pixels, x.element_size())

    def numbers(self) -> Tensor:
        """Return room for a number of every plane, (N, C)."""
        return self.x.new_empty(self.x.shape[:2], dtype=torch.float64)

    def parts(self, *whole: Tensor) -> tuple[Tensor, ...]:
        """Return room for the partial results, (splits, N, C): the whole's own where no plane is cut."""
        if self.plan.splits == 1:
            return whole
        return tuple(t.new_empty(self.plan.splits, *t.shape) for t in whole)

    def launch(self, name: str, *arguments: Tensor | None, **options: bool) -> None:
        """Run one of the four passes."""
        n, c = self.x.shape[:2]
        cut = self.plan
        extents = (n * c, c // cut.CW, self.pixels // cut.SW, cut.tiles, cut.splits)
        constants = {"CW": cut.CW, "SW": cut.SW, "ROWS": self.rows, "P": cut.P, "B": cut.B}
        self._run(name, cut.programs, *arguments, *extents, **constants, **options, ACC=_accumulator(self.x.dtype))

    def merge(self, name: str, *arguments: Tensor | int) -> None:
        """Run the kernel that makes whole results of partial ones."""
        planes = self.x.shape[0] * self.x.shape[1]
        self._run(name, -(-planes // CONFIG.merged), *arguments, K=CONFIG.merged)

    def _run(self, name: str, programs: int, *arguments: Tensor | int | None, **options: Any) -> None:
        with _on(self.x):
            # Fusing products with sums is spelled out in the kernels; see there.
            kernel = getattr(_kernels(), name)
            kernel[(programs,)](*arguments, **options, num_warps=CONFIG.warps, enable_fp_fusion=False)


@functools.cache
def _kernels() -> Any:
    """Import triton at the first launch: the package needs torch alone, and this takes a second."""
    return importlib.import_module("calibnorm.ops.triton.kernels.pixels")


@functools.cache
def _accumulator(dtype: torch.dtype) -> Any:
    import triton.language as tl

    return tl.float64 if dtype == torch.float64 else tl.float32


def _on(x: Tensor) -> AbstractContextManager[Any]:
    """Make x's card the current one, where it is not."""
    if x.is_cpu or x.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(x.device)


def _wide(t: Tensor) -> Tensor:
    return t.to(torch.float64).contiguous()
