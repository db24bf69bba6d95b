"""Which tensors kernels take: plain and dense, of four dtypes, contiguous or with their channels innermost."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_TensorOrNone = TypeVar("_TensorOrNone", Tensor, Tensor | None)


def exporting() -> bool:
    """Whether torch.export looks on.

    To Dynamo of torch 2.11 ``torch.compiler.is_exporting()`` is True under torch.compile, too; newer ones read this.
    """
    return torch.compiler._is_exporting_flag


def transformed(x: Tensor) -> bool:
    """Whether x is being traced, compiled or transformed, so that only differentiable torch operations may touch it.

    True under torch.compile, torch.export, torch.jit.trace, ONNX export, torch.func and forward-mode AD, and for
    tensor subclasses.
    """
    return (
        torch.compiler.is_compiling()
        or type(x) not in (Tensor, torch.nn.Parameter)
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or torch._C._functorch.is_legacy_batchedtensor(x)  # what is_grads_batched=True still uses
    )


def fits(residual: Tensor, x: Tensor) -> bool:
    """Whether a residual is plain and can be added pixel by pixel."""
    return (
        type(residual) is Tensor
        and residual.shape == x.shape
        and residual.dtype is x.dtype
        and residual.is_cpu
        and not transformed(residual)
    )


def refuses(x: Tensor, here: bool, device: str) -> str | None:
    """Return why the kernels of a kind of device do not take x, or None; ``here`` says whether x lies on one."""
    if not here or x.dtype not in DTYPES or x.layout is not torch.strided:
        kinds = "float32, float64, bfloat16 and float16"
        return f"it takes strided {device} tensors of {kinds}, not {x.dtype} on {x.device}"
    if x.is_neg():
        return "it does not take lazily negated views"
    # A mode that watches operations (FakeTensorMode, a FLOP counter) would not see what a kernel does.
    if torch._C._len_torch_dispatch_stack():
        return "a torch dispatch mode is active, which must see every operation"
    return None


def in_two_layouts(x: Tensor) -> Tensor:
    """Return x contiguous or channels_last, as torch's BatchNorm does: backends see, and outputs have, no third one."""
    if x.is_contiguous():
        return x
    if x.ndim in _CHANNELS_LAST and x.stride(1) == 1:
        return x.contiguous(memory_format=_CHANNELS_LAST[x.ndim])
    return x.contiguous()


def dense(x: Tensor) -> tuple[Tensor, bool]:
    """Return x or a dense copy of it, and whether its channels are innermost."""
    if x.is_contiguous():
        return x, x.numel() == x.shape[0] * x.shape[1]  # one pixel a plane: rows of channels
    if x.ndim not in _CHANNELS_LAST and x.movedim(1, -1).is_contiguous():
        return x, True
    x = in_two_layouts(x)
    return x, not x.is_contiguous() or x.numel() == x.shape[0] * x.shape[1]


def like(t: _TensorOrNone, x: Tensor) -> _TensorOrNone:
    """Return t in the dtype and the strides of x, which is dense, and not lazily negated."""
    if t is None or (t.stride() == x.stride() and t.dtype == x.dtype and not t.is_neg()):
        return t
    return torch.empty_like(x).copy_(t)
