"""Which backend runs the passes over pixels, and when no backend may: the one place to add either.

A backend is a module with the functions of :mod:`calibnorm.ops.reference`, and perhaps one with a fused implementation
of whole layers (:class:`calibnorm.ops.three_steps.ThreeSteps`). It sees plain tensors, outside of any transformation,
and need not be differentiable: :mod:`calibnorm.ops.autograd` is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from calibnorm.ops import reference
from calibnorm.ops.coefficients import Step
from calibnorm.ops.cpu import fused as cpu_layers
from calibnorm.ops.cpu import passes as cpu
from calibnorm.ops.cpu import synchronized as cpu_synchronized
from calibnorm.ops.cpu import traced as traced_layers
from calibnorm.ops.kernel_methods import kind_of
from calibnorm.ops.three_steps import Passes, StepByStep, ThreeSteps
from calibnorm.ops.triton import fused as triton_layers
from calibnorm.ops.triton import passes as triton


@dataclass(frozen=True)
class Backend:
    """A named implementation of the passes and the inputs it takes."""

    name: str
    passes: Passes
    refuses: Callable[[Tensor], str | None]
    """Why it does not take an input, or None."""
    unavailable: Callable[[], str | None] = lambda: None
    """Why it cannot run here at all, or None."""
    runs_with: Callable[[], str] = lambda: "plain torch, any device"
    fused: ThreeSteps | None = None
    """The layers of the methods that kernels know, or None."""
    traced: ThreeSteps | None = None
    """The layers of other methods, by the program of their coefficient step, or None."""
    synchronized: ThreeSteps | None = None
    """The layers of all methods where processes share statistics, or None."""

    @cached_property
    def step_by_step(self) -> ThreeSteps:
        """The layer of any method, from the four passes."""
        return StepByStep(self.passes)

    def three_steps(self, step: Step) -> ThreeSteps:
        """Return what runs a layer: the fused implementation where there is one for the step, else the general one."""
        if step.synchronized is not None:  # one call of C has nowhere to exchange statistics
            return self.synchronized or self.step_by_step
        return (self.fused if kind_of(step.method) else self.traced) or self.step_by_step


class BackendStatus(NamedTuple):
    """Whether a backend runs on this machine, and how, or why not."""

    runs: bool
    detail: str

    def __str__(self) -> str:
        return f"{'runs' if self.runs else 'does not run'}: {self.detail}"


BACKENDS: list[Backend] = [
    Backend(
        "cpu",
        cpu,
        cpu.refuses,
        cpu.unavailable,
        cpu.runs_with,
        cpu_layers,
        traced_layers,
        cpu_synchronized.LAYERS,
    ),
    Backend("triton", triton, triton.refuses, triton.unavailable, triton.runs_with, triton_layers),
    Backend("reference", reference, lambda x: None),
]
"""In the order of preference. The reference takes everything and stays last."""

VARIABLE = "CALIBNORM_BACKEND"
_FROM_ENVIRONMENT: str | None = os.environ.get(VARIABLE)
_asked: ContextVar[str | None] = ContextVar("calibnorm_backend", default=_FROM_ENVIRONMENT)


def choose(x: Tensor) -> Backend:
    """Return the backend that was asked for by name, or the first that takes x's device, dtype and layout.

    Raises:
        ValueError: No backend has the name.
        RuntimeError: The backend that was asked for does not take x; there is no silent fallback.
    """
    name = _asked.get()
    if name is None:
        for backend in BACKENDS:
            if backend.refuses(x) is None:
                return backend
        raise AssertionError("the reference takes everything")
    backend = _named(name)
    why = backend.refuses(x)
    if why is not None:
        raise RuntimeError(f"backend {name!r} was asked for by name and does not take this input: {why}")
    return backend


def in_c(x: Tensor) -> bool:
    """Whether the kernels for CPUs are what takes x."""
    return choose(x).name == "cpu"


def update_running(buffers: tuple[Tensor, ...], mean: Tensor, var: Tensor, momentum: float, unbias: float) -> None:
    """Move running statistics with the first backend that can, whichever was asked for; see the reference's function.

    C takes a tenth of the time of the eight torch operations, which were a quarter of a small layer's; on a GPU, Triton
    takes one launch instead of eight.
    """
    for backend in BACKENDS:
        if backend.passes.update_running(buffers, mean, var, momentum, unbias):
            return


def _named(name: str) -> Backend:
    for backend in BACKENDS:
        if backend.name == name:
            return backend
    raise ValueError(
        f"backend {name!r} is not known; choose one of {', '.join(b.name for b in BACKENDS)}"
        + (f" (the variable {VARIABLE} asks for it)" if os.environ.get(VARIABLE) == name else "")
    )


def use_backend(name: str | None) -> AbstractContextManager[None]:
    """Run the passes over pixels with one backend, within a ``with`` block; the variable CALIBNORM_BACKEND does it too.

    An input that the backend does not take raises instead of going elsewhere. Inside torch.compile, torch.export,
    tracing, torch.func and forward-mode AD no backend runs, whatever was asked for: torch's own operations do.

    Args:
        name: A name from :func:`calibnorm.backends`; None chooses for every input anew.

    Raises:
        ValueError: No backend has the name.
        RuntimeError: The backend does not run on this machine; the message says why.

    >>> import torch, calibnorm as cn
    >>> with cn.use_backend("reference"):
    ...     y = cn.RBN2d(3)(torch.randn(2, 3, 4, 4))
    """
    if name is not None:
        why = _named(name).unavailable()
        if why is not None:
            raise RuntimeError(f"backend {name!r} does not run here: {why}")
    return _using(name)


@contextmanager
def _using(name: str | None) -> Iterator[None]:
    token = _asked.set(name)
    try:
        yield
    finally:
        _asked.reset(token)


def backends() -> dict[str, BackendStatus]:
    """Return, for every backend in the order of preference, whether it runs on this machine, and how, or why not.

    >>> import calibnorm as cn
    >>> print(cn.backends()["reference"])
    runs: plain torch, any device
    """
    return {
        backend.name: BackendStatus(why is None, backend.runs_with() if why is None else why)
        for backend, why in ((backend, backend.unavailable()) for backend in BACKENDS)
    }
