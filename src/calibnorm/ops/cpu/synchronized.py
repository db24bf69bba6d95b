"""The layer of any method whose statistics several processes share: C between the exchanges, by programs.

Everything on (N, C) numbers is five programs, made together at the first call of a kind. Where a step has none, torch's
operations exchange the same numbers: what other processes run does not matter.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from calibnorm.ops import coefficients, programs
from calibnorm.ops.coefficients import Call, Pulled, Step
from calibnorm.ops.cpu import passes
from calibnorm.ops.cpu.traced import made, run
from calibnorm.ops.programs import Program, Shapes
from calibnorm.ops.statistics import Statistics
from calibnorm.ops.three_steps import StepByStep


class Programs(NamedTuple):
    """What runs between the passes and the exchanges; see :mod:`calibnorm.ops.programs.synchronized`."""

    statistics: Program
    of_all: Program
    coefficients: Program
    gradients: Program
    through: Program


def find_coefficients(call: Call, m: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Statistics]:
    """Return scale, shift and the statistics used."""
    found, shared = _programs_of(call, m), call.step.synchronized
    if found is None or shared is None:
        return call.coefficients(m, v)
    tensors = [_wide(t) for t in call.tensors]
    used = call.found
    if used is None:
        received = shared.gather(*run(found.statistics, (m, v, *tensors), 0), len(m))
        mean, var, shared.values = run(found.of_all, (received,), 0)
        used = mean, var
    scale, shift = run(found.coefficients, (m, v, *tensors, *used), 2)
    return scale, shift, used


def pull_back(
    call: Call, m: Tensor, v: Tensor, sums: tuple[Tensor, Tensor], pixels: int, wanted: tuple[bool, ...]
) -> Pulled:
    """Return the gradients from S1 and S2; ``wanted`` is about x and then the learnable tensors."""
    found, shared = _programs_of(call, m), call.step.synchronized
    # Without a gradient of x it depends on the method whether there is an exchange.
    if found is None or shared is None or call.found is None or shared.values is None or not wanted[0]:
        return coefficients.pull_back(call, m, v, sums, pixels, wanted)
    tensors, area = [_wide(t) for t in call.tensors], m.new_full((1,), pixels)
    mean, var = call.found
    scale, slope, offset, *some, d_mean, d_var = run(found.gradients, (m, v, *sums, *tensors, mean, var, area), 3)
    total = shared.sum(d_mean, d_var)
    given = m, v, slope, offset, *tensors, *some, mean, total, shared.values, area
    slope, offset, *gradients = run(found.through, given, 2)
    every = zip(gradients, call.tensors, wanted[1:], strict=True)
    return Pulled(scale, slope, offset, [d.to(t.dtype) if want else None for d, t, want in every])


LAYERS = StepByStep(passes, find_coefficients, pull_back)


def _wide(t: Tensor) -> Tensor:
    return t.detach().double().contiguous()


def _programs_of(call: Call, m: Tensor) -> Programs | None:
    if not len(m):
        return None
    step = call.step._replace(synchronized=None)
    return _programs(step, m.shape[1], tuple([t.shape for t in call.tensors]))


@functools.lru_cache(maxsize=1024)
def _programs(step: Step, channels: int, shapes: Shapes) -> Programs | None:
    """Return the programs of a kind of call, or None where there are not all of them."""
    statistics = made(programs.statistics(step), 2, channels, shapes)
    if statistics is None or len(statistics.outputs) != 2:
        return None
    of_both, one = statistics.outputs, (1,)
    (columns,) = of_both[0]
    found = [
        statistics,
        made(programs.of_all(channels), 1, 2 + 2 * columns, ()),
        made(programs.coefficients(step, len(shapes), True), 2, channels, (*shapes, *of_both)),
        made(programs.gradients_but_statistics(step), 4, channels, (*shapes, *of_both, one)),
        made(
            programs.gradients_through_statistics(step, channels),
            4,
            channels,
            (*shapes, *shapes, of_both[0], (2, columns), (2,), one),
        ),
    ]
    every = [program for program in found if program is not None]
    return Programs(*every) if len(every) == len(found) else None
