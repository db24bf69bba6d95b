"""The layer of any method whose statistics several processes share: C between the exchanges.

What is on (N, C) numbers is written by hand or a program, made at the first call of a kind. Where a step has none,
torch's operations exchange the same numbers: what other processes run does not matter.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from torch import Tensor

from calibnorm.ops import coefficients, programs
from calibnorm.ops.coefficients import Call, Pulled, Step
from calibnorm.ops.cpu import coefficients as by_hand
from calibnorm.ops.cpu import passes
from calibnorm.ops.cpu.passes import wide
from calibnorm.ops.cpu.traced import made, run
from calibnorm.ops.kernel_methods import kind_of
from calibnorm.ops.programs import Program, Shapes
from calibnorm.ops.statistics import Statistics
from calibnorm.ops.three_steps import StepByStep


class Forward(NamedTuple):
    """What runs before and after the exchange; see :mod:`calibnorm.ops.programs.synchronized`."""

    statistics: Program
    of_all: Program
    coefficients: Program | None
    """None where they are written by hand."""


class Backward(NamedTuple):
    """The same of the gradient."""

    gradients: Program | None
    through: Program


def find_coefficients(call: Call, m: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Statistics]:
    """Return scale, shift and the statistics used."""
    found, shared = forward_programs(*_kind(call, m)) if len(m) else None, call.step.synchronized
    if found is None or shared is None:
        return call.coefficients(m, v)
    tensors, used = tuple(map(wide, call.tensors)), call.found
    if used is None:
        mean, var = run(found.statistics, (m, v, *tensors), 0)
        mean, var, shared.values = run(found.of_all, (shared.gather(mean, var, len(m)),), 0)
        used = mean, var
    if found.coefficients is None:
        return by_hand.coefficients(call._replace(statistics=used, tensors=tensors), m, v)
    scale, shift = run(found.coefficients, (m, v, *tensors, *used), 2)
    return scale, shift, used


def pull_back(
    call: Call, m: Tensor, v: Tensor, sums: tuple[Tensor, Tensor], pixels: int, wanted: tuple[bool, ...]
) -> Pulled:
    """Return the gradients from S1 and S2; ``wanted`` is about x and then the learnable tensors."""
    found, shared = backward_programs(*_kind(call, m)), call.step.synchronized
    # Without a gradient of x it depends on the method whether there is an exchange.
    if found is None or shared is None or call.found is None or shared.values is None or not wanted[0]:
        return coefficients.pull_back(call, m, v, sums, pixels, wanted)
    tensors, (mean, var), area = tuple(map(wide, call.tensors)), call.found, m.new_full((1,), pixels)
    if found.gradients is None:
        given = call._replace(statistics=call.found, tensors=tensors)
        direct = by_hand.gradients(given, m, v, sums, pixels)
    else:
        direct = run(found.gradients, (m, v, *sums, *tensors, mean, var, area), 3)
    scale, slope, offset, *some, d_mean, d_var = direct
    fixed = *tensors, *some, mean, shared.sum(d_mean, d_var), shared.values, area
    slope, offset, *gradients = run(found.through, (m, v, slope, offset, *fixed), 2)
    every = zip(gradients, call.tensors, wanted[1:], strict=True)
    return Pulled(scale, slope, offset, [d.to(t.dtype) if want else None for d, t, want in every])


LAYERS = StepByStep(passes, find_coefficients, pull_back)


def _kind(call: Call, m: Tensor) -> tuple[Step, int, Shapes]:
    """Return what the programs of a call are made from."""
    return call.step._replace(synchronized=None), m.shape[1], tuple([t.shape for t in call.tensors])


@functools.lru_cache(maxsize=1024)
def forward_programs(step: Step, channels: int, shapes: Shapes) -> Forward | None:
    """Return the programs of a kind of call, or None where one cannot be made."""
    statistics = made(programs.statistics(step), 2, channels, shapes)
    if statistics is None or len(statistics.outputs) != 2:
        return None
    (columns,), _ = pair = statistics.outputs
    of_all = made(programs.of_all(channels), 1, 2 + 2 * columns, ())
    if of_all is None:
        return None
    if kind_of(step.method):
        return Forward(statistics, of_all, None)
    find = made(programs.coefficients(step, len(shapes), True), 2, channels, (*shapes, *pair))
    return None if find is None else Forward(statistics, of_all, find)


@functools.lru_cache(maxsize=1024)
def backward_programs(step: Step, channels: int, shapes: Shapes) -> Backward | None:
    """Return those of its gradient, or None. Made in a backward: hooks on what a forward saves would see theirs."""
    forward = forward_programs(step, channels, shapes)
    if forward is None:
        return None
    (columns,), _ = pair = forward.statistics.outputs
    fixed = (*shapes, *shapes, pair[0], (2, columns), (2,), (1,))
    through = made(programs.gradients_through_statistics(step, channels), 4, channels, fixed)
    if through is None:
        return None
    if kind_of(step.method):
        return Backward(None, through)
    gradients = made(programs.gradients_but_statistics(step), 4, channels, (*shapes, *pair, (1,)))
    return None if gradients is None else Backward(gradients, through)
