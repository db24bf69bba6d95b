"""The coefficient step in C by itself, as :mod:`calibnorm.ops.cpu.fused` runs it between the passes."""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from calibnorm.ops.coefficients import Call, Pulled
from calibnorm.ops.cpu.passes import address, library
from calibnorm.ops.kernel_methods import kind_of, slots_of
from calibnorm.ops.statistics import Statistics

_STEP = struct.Struct("3q4i3d20P")
"""``cn_coefficient_job`` of ``csrc/kernels.h``."""


def coefficients(call: Call, m: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Statistics]:
    """Return scale, shift and the statistics used."""
    used = call.statistics or (m.new_empty(m.shape[1]), m.new_empty(m.shape[1]))
    scale, shift = torch.empty_like(m), torch.empty_like(m)
    _run("coefficients", call, 1, m, v, [*used], [scale, shift])
    return scale, shift, used


def pull_back(
    call: Call, m: Tensor, v: Tensor, sums: tuple[Tensor, Tensor], pixels: int, wanted: tuple[bool, ...]
) -> Pulled:
    """Return the gradients from S1 and S2; ``wanted`` is about x and then the learnable tensors."""
    scale, slope, offset = (torch.empty_like(m) for _ in range(3))
    found = [torch.empty_like(t) if want else None for t, want in zip(call.tensors, wanted[1:], strict=True)]
    numbers = [scale, None, *sums, slope, offset]
    _run("coefficients_vjp", call, pixels, m, v, [*(call.statistics or (None, None))], numbers, found)
    return Pulled(scale, slope, offset, found)


def _run(
    function: str,
    call: Call,
    pixels: int,
    m: Tensor,
    v: Tensor,
    mean_var: list[Tensor | None],
    numbers: list[Tensor | None],
    found: list[Tensor | None] | None = None,
) -> None:
    kind, slots = kind_of(call.step.method), slots_of(call.step.names)
    assert kind is not None
    numbers = [*numbers, *[None] * (6 - len(numbers))]
    job = _STEP.pack(
        *m.shape, pixels,
        *kind, call.statistics is not None,  # CN_GIVEN or CN_OF_BATCH
       
        call.step.eps, *(call.step.noise or (1.0, 0.0)),
        *map(address, [m, v, *mean_var]),
        *slots((*map(address, call.tensors), 0)),
        *map(address, numbers),
        *slots((*map(address, found or [None] * len(call.tensors)), 0)),
    )  # fmt: skip
    getattr(library(), function)(job)
