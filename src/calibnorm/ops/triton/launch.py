"""One pass over pixels as a launch: a dense input, how it is cut, and the kernels by name."""

from __future__ import annotations

import functools
import importlib
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from calibnorm.ops.cpu import dense
from calibnorm.ops.triton.config import CONFIG, Plan, plan, whole


class Work:
    """One pass: a dense input, how it is cut, and the launches."""

    def __init__(self, x: Tensor) -> None:
        self.x, rows = dense(x)
        n, c = x.shape[:2]
        self.pixels = x.numel() // (n * c)
        self.rows = rows and self.pixels > 1  # else a tile of rows would be a few channels of one instance
        self.cut = (self.rows, n, c, self.pixels, x.element_size())

    @functools.cached_property
    def plan(self) -> Plan:
        """How the passes cut it."""
        return plan(*self.cut)

    @property
    def whole(self) -> tuple[Plan, int] | None:
        """How it is cut into whole planes, and the warps of a program, or None where these do not fit on chip."""
        return whole(*self.cut)

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
        cut = self.plan
        extents = (*self.extents(cut), cut.tiles, cut.splits)
        run(self.x, "pixels", name, cut.programs, (*arguments, *extents), {**self.constants(cut), **options})

    def extents(self, cut: Plan) -> tuple[int, int, int]:
        """Return N * C, and C and S in units."""
        n, c = self.x.shape[:2]
        return n * c, c // cut.CW, self.pixels // cut.SW

    def constants(self, cut: Plan) -> dict[str, Any]:
        """Return what a kernel is compiled for."""
        found = {"CW": cut.CW, "SW": cut.SW, "ROWS": self.rows, "P": cut.P, "B": cut.B}
        return {**found, "ACC": _accumulator(self.x.dtype)}

    def merge(self, name: str, *arguments: Tensor | int) -> None:
        """Run the kernel that makes whole results of partial ones."""
        planes = self.x.shape[0] * self.x.shape[1]
        run(self.x, "pixels", name, -(-planes // CONFIG.merged), arguments, {"K": CONFIG.merged})


def run(
    x: Tensor,
    module: str,
    name: str,
    programs: int,
    arguments: tuple[Tensor | int | None, ...],
    constants: dict[str, Any],
    warps: int = CONFIG.warps,
) -> None:
    """Launch a kernel on x's card."""
    with _on(x):
        # Fusing products with sums is spelled out in the kernels; see there.
        kernel = getattr(_kernels(module), name)
        kernel[(programs,)](*arguments, **constants, num_warps=warps, enable_fp_fusion=False)


@functools.cache
def _kernels(module: str) -> Any:
    """Import triton at the first launch: the package needs torch alone, and this takes a second."""
    return importlib.import_module(f"calibnorm.ops.triton.kernels.{module}")


@functools.cache
def _accumulator(dtype: torch.dtype) -> Any:
    import triton.language as tl

    return tl.float64 if dtype == torch.float64 else tl.float32


def _on(x: Tensor) -> AbstractContextManager[Any]:
    """Make x's card the current one, where it is not."""
    if x.is_cpu or x.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(x.device)  # pragma: no cover  (needs two cards)
