"""Which of these tests this process can run: the kernels need a CUDA device, or Triton's interpreter for CPU tensors.

``make test`` runs them in the interpreter, in a process of its own: TRITON_INTERPRET is read when triton is imported,
and then holds for all of it. What can be asked of the compiler needs neither, and triton alone.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from calibnorm.ops.triton import config, fused, launch, passes
from triton_cuts import SMALL

collect_ignore = []
if passes.unavailable() is not None:
    collect_ignore += [
        "test_triton_passes.py",
        "test_triton_layers.py",
        "test_triton_offsets.py",
        "test_kernel_checks.py",
    ]
if passes.interpreted() or passes.unavailable() == "triton is not installed":
    collect_ignore += ["test_compiled.py", "test_launched.py"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Cut small planes as large ones are."""

    def forget() -> None:
        for cached in (launch.geometry, launch.whole_geometry, fused._constants):
            cached.cache_clear()

    forget()
    monkeypatch.setattr(launch, "plan", functools.partial(config.plan, config=SMALL))
    monkeypatch.setattr(launch, "whole", functools.partial(config.whole, config=SMALL))
    monkeypatch.setattr(fused, "CONFIG", SMALL)
    yield
    forget()


@pytest.fixture(scope="session", autouse=True)
def untraced_kernels() -> Iterator[None]:
    """Keep coverage's tracer out of the interpreter, which it slows to a third; kernels are not measured anyway."""
    if not passes.interpreted() or passes.unavailable() is not None:
        yield
        return
    from triton.runtime import interpreter

    run = interpreter.GridExecutor.__call__

    def untraced(self: Any, *args: Any, **kwargs: Any) -> None:
        tracer = sys.gettrace()
        sys.settrace(None)
        try:
            run(self, *args, **kwargs)
        finally:
            sys.settrace(tracer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.GridExecutor, "__call__", untraced)
        yield
