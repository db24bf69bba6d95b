"""Which backend runs the passes over pixels, and when no backend may: the one place to add either.

A backend is a module with the four functions of :mod:`calibnorm.ops.reference`. It sees plain tensors, outside of
any transformation, and need not be differentiable: :mod:`calibnorm.ops.autograd` is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

from calibnorm.ops import reference


class Passes(Protocol):
    """The four passes; see :mod:`calibnorm.ops.reference` for what each returns."""

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]: ...  # noqa: D102
    def affine(self, x: Tensor, m: Tensor, scale: Tensor, shift: Tensor) -> Tensor: ...  # noqa: D102
    def gradient_sums(self, dy: Tensor, x: Tensor, m: Tensor) -> tuple[Tensor, Tensor]: ...  # noqa: D102
    def gradient_apply(  # noqa: D102
        self, dy: Tensor, x: Tensor, m: Tensor, scale: Tensor, slope: Tensor, offset: Tensor
    ) -> Tensor: ...


@dataclass(frozen=True)
class Backend:
    """A named implementation of the passes and the inputs it takes."""

    name: str
    passes: Passes
    takes: Callable[[Tensor], bool]


BACKENDS: list[Backend] = [Backend("reference", reference, lambda x: True)]
"""In the order of preference. The reference takes everything and stays last."""


def choose(x: Tensor) -> Backend:
    """Return the first backend that takes x's device, dtype and layout."""
    return next(backend for backend in BACKENDS if backend.takes(x))


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
    )
