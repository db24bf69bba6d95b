"""One pass over pixels as a launch: a dense input, how it is cut, and the kernels by name."""

from __future__ import annotations

import functools
import importlib
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from calibnorm.ops.inputs import dense
from calibnorm.ops.triton.config import CONFIG, Plan, plan, whole


class Geometry(NamedTuple):
    """How a tensor is cut, and what its kernels are compiled for and told of it."""

    plan: Plan
    extents: tuple[int, ...]
    constants: dict[str, Any]


@functools.lru_cache(maxsize=1024)
def geometry(rows: bool, n: int, c: int, pixels: int, dtype: torch.dtype) -> Geometry:
    """Return how the passes cut a tensor."""
    cut = plan(rows, n, c, pixels, dtype.itemsize)
    return _geometry(cut, (cut.tiles, cut.splits), rows, n, c, pixels, dtype)


@functools.lru_cache(maxsize=1024)
def whole_geometry(rows: bool, n: int, c: int, pixels: int, dtype: torch.dtype) -> tuple[Geometry, int] | None:
    """Return how a tensor is cut into whole planes, and the warps of a program, or None where these do not fit."""
    found = whole(rows, n, c, pixels, dtype.itemsize)
    return None if found is None else (_geometry(found[0], (), rows, n, c, pixels, dtype), found[1])


def _geometry(
    cut: Plan, more: tuple[int, ...], rows: bool, n: int, c: int, pixels: int, dtype: torch.dtype
) -> Geometry:
    import triton.language as tl

    constants = {"CW": cut.CW, "SW": cut.SW, "ROWS": rows, "P": cut.P, "B": cut.B}
    constants["ACC"] = tl.float64 if dtype == torch.float64 else tl.float32
    return Geometry(cut, (n * c, c // cut.CW, pixels // cut.SW, *more), constants)


class Work:
    """One pass: a dense input, how it is cut, and the launches."""

    def __init__(self, x: Tensor) -> None:
        self.x, rows = dense(x)
        self.planes = x.shape[:2]
        n, c = self.planes
        self.pixels = x.numel() // (n * c)
        # A tile of rows would be a few channels of one instance where these have one pixel.
        self.cut = (rows and self.pixels > 1, n, c, self.pixels, x.dtype)

    @property
    def plan(self) -> Plan:
        """How the passes cut it."""
        return geometry(*self.cut).plan

    @property
    def whole(self) -> tuple[Geometry, int] | None:
        """How it is cut into whole planes, and the warps of a program, or None where these do not fit on chip."""
        return whole_geometry(*self.cut)

    def numbers(self, *more: int) -> Tensor:
        """Return room for a number of every plane, (N, C), or for several, (..., N, C)."""
        return self.x.new_empty((*more, *self.planes), dtype=torch.float64)

    def parts(self, *whole: Tensor) -> tuple[Tensor, ...]:
        """Return room for the partial results, (splits, N, C): the whole's own where no plane is cut."""
        splits = self.plan.splits
        return whole if splits == 1 else self.numbers(len(whole), splits).unbind()

    def launch(self, name: str, *arguments: Tensor | None, **options: bool) -> None:
        """Run one of the four passes."""
        cut, extents, constants = geometry(*self.cut)
        run(self.x, "pixels", name, cut.programs, (*arguments, *extents), {**constants, **options})

    def merge(self, name: str, *arguments: Tensor | int) -> None:
        """Run the kernel that makes whole results of partial ones."""
        run(self.x, "pixels", name, -(-self.planes.numel() // CONFIG.merged), arguments, {"K": CONFIG.merged})


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


def _on(x: Tensor) -> AbstractContextManager[Any]:
    """Make x's card the current one, where it is not."""
    if x.is_cpu or x.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(x.device)  # pragma: no cover  (needs two cards)
