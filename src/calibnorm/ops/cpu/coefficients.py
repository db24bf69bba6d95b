"""The coefficient step of BN, IEBN and RBN in C by itself, as :mod:`calibnorm.ops.cpu.fused` runs it between passes.

Every tensor is float64, contiguous and of the CPU.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from calibnorm.ops.coefficients import Call
from calibnorm.ops.cpu.passes import address, library
from calibnorm.ops.kernel_methods import kind_of, slots_of
from calibnorm.ops.statistics import Statistics

_STEP = struct.Struct("3q4i3d22P").pack
"""``cn_coefficient_job`` of ``csrc/kernels.h``."""
_OF_BATCH, _GIVEN = range(2)
_QUIET = (1.0, 0.0)


def coefficients(call: Call, m: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Statistics]:
    """Return scale, shift and the statistics used."""
    used = call.statistics or (m.new_empty(m.shape[1]), m.new_empty(m.shape[1]))
    scale, shift = torch.empty_like(m), torch.empty_like(m)
    library().coefficients(_job(call, 1, m, v, used, (scale, shift)))
    return scale, shift, used


def gradients(call: Call, m: Tensor, v: Tensor, sums: tuple[Tensor, Tensor], pixels: int) -> list[Tensor]:
    """Return scale, slope, offset and the gradients of the learnable tensors from S1 and S2, then those of E and Var.

    Where these are given the others have them constant, else not.
    """
    scale, slope, offset = numbers = torch.empty_like(m), torch.empty_like(m), torch.empty_like(m)
    found = [torch.empty_like(t) for t in call.tensors]
    of_statistics = m.new_empty(m.shape[1]), m.new_empty(m.shape[1])
    used = call.statistics or (None, None)
    job = _job(call, pixels, m, v, used, (scale, None, *sums, slope, offset), found, of_statistics)
    library().coefficients_vjp(job)
    return [*numbers, *found, *of_statistics]


def _job(
    call: Call,
    pixels: int,
    m: Tensor,
    v: Tensor,
    used: Sequence[Tensor | None],
    numbers: Sequence[Tensor | None],
    found: Sequence[Tensor | None] = (),
    of_statistics: Sequence[Tensor | None] = (None, None),
) -> bytes:
    kind, slots = kind_of(call.step.method), slots_of(call.step.names)
    assert kind is not None
    return _STEP(
        *m.shape, pixels,
        *kind, _OF_BATCH if call.statistics is None else _GIVEN,
        call.step.eps, *(call.step.noise or _QUIET),
        *map(address, (m, v, *used)),
        *slots((*map(address, call.tensors), 0)),
        *map(address, numbers), *[0] * (6 - len(numbers)),
        *slots((*map(address, found or (None,) * len(call.tensors)), 0)),
        *map(address, of_statistics),
    )  # fmt: skip
