"""The whole layer of BN, IEBN and RBN in three launches a direction, checked against the layer step by step.

A pass over pixels, the coefficient step with all that it needs of the batch, and the second pass. Parts of planes that
were cut are merged by the coefficient step. Backward with a ReLU computes the coefficients once more, for the mask.
With given statistics, and planes that fit on chip, a forward is one launch.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from calibnorm._checks import Noise
from calibnorm.methods import Method
from calibnorm.ops.coefficients import Call
from calibnorm.ops.inputs import like
from calibnorm.ops.kernel_methods import kind_of, slots_of
from calibnorm.ops.three_steps import Gradients, Normalized, Wanted
from calibnorm.ops.triton.config import CONFIG
from calibnorm.ops.triton.launch import Geometry, Work, run


def forward(x: Tensor, call: Call) -> Normalized:
    """Return y, the moments and the statistics used."""
    work = Work(x)
    x = work.x
    step = _Coefficients(x, call)
    if call.statistics is not None and work.whole is not None:
        y, moments = step.whole(work, *work.whole)
        return Normalized(y, moments, call.statistics)
    moments = work.numbers(2)
    m, v = moments.unbind()
    parts = work.parts(m, v)
    work.launch("moments", x, *parts)
    used = call.statistics or tuple(x.new_empty(2, x.shape[1], dtype=torch.float64).unbind())
    scale, shift = step.forward(work, m, v, parts, used)
    y = torch.empty_like(x)
    work.launch("affine", x, m, scale, shift, like(call.residual, x), y, RELU=call.relu)
    # One pixel a plane: the moments are as many numbers as x has, and in a wider dtype.
    return Normalized(y, None if work.pixels == 1 else moments, (used[0], used[1]))


def backward(dy: Tensor, x: Tensor, moments: Tensor | None, call: Call, wanted: Wanted) -> Gradients:
    """Return the gradients in two passes over pixels."""
    work = Work(x)
    x = work.x
    step = _Coefficients(x, call)
    if moments is None:  # one pixel a plane, which is never cut
        moments = work.numbers(2)
        work.launch("moments", x, *moments.unbind())
    m, v = moments.unbind()
    same, scale, shift, residual, masked = like(dy, x), None, None, None, None
    if call.relu:
        scale, shift = step.forward(work, m, v, (m, v), call.statistics)
        residual = like(call.residual, x)
        masked = None if residual is None else torch.empty_like(x)
    sums = work.numbers(2).unbind()
    parts = work.parts(*sums)
    work.launch("gradient_sums", same, x, m, scale, shift, residual, masked, *parts, RELU=call.relu)
    numbers, tensors = step.backward(work, (m, v), sums, parts, wanted)
    d_residual = (dy if masked is None else masked) if wanted.residual else None
    if numbers is None:
        return Gradients(None, d_residual, tensors)
    scale, slope, offset = numbers
    if masked is not None:
        same, shift = masked, None
    d_x = torch.empty_like(x)
    work.launch("gradient_apply", same, x, m, scale, slope, offset, shift, d_x, RELU=shift is not None)
    return Gradients(d_x, d_residual, tensors)


class _Coefficients:
    """The coefficient step of one call."""

    def __init__(self, x: Tensor, call: Call) -> None:
        self.x, self.call = x, call
        given = call.tensors if call.statistics is None else (*call.tensors, *call.statistics)
        for t in given:
            if t.device != x.device:  # a kernel would read another card's memory, or crash
                raise RuntimeError(
                    f"the input is on {x.device} and a tensor of the layer on {t.device}; move one of them"
                )
        self.slots = slots_of(call.step.names)
        self.learnable = self.slots([*(t.contiguous() for t in call.tensors), None])
        how = call.step
        self.constants = _constants(how.method, how.eps, how.noise, call.statistics is not None, x.shape[0])

    def forward(
        self, work: Work, m: Tensor, v: Tensor, parts: tuple[Tensor, ...], statistics: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, Tensor]:
        """Return scale and shift; fill the moments from their parts, and the batch's statistics where there is room."""
        scale, shift = work.numbers(2).unbind()
        mean, var = (None, None) if statistics is None else (t.contiguous() for t in statistics)
        cut, plan = (None, None) if parts[0] is m else parts, work.plan
        extents = (*work.planes, work.pixels, plan.chunk, plan.splits)
        self._run("coefficients", (*cut, m, v, mean, var, *self.learnable, scale, shift, *extents))
        return scale, shift

    def whole(self, work: Work, cut: Geometry, warps: int) -> tuple[Tensor, Tensor | None]:
        """Return y and the moments, in one launch: the statistics are given, and no plane is cut."""
        y = torch.empty_like(self.x)
        moments = None if work.pixels == 1 else work.numbers(2)
        assert self.call.statistics is not None
        given = (*(t.contiguous() for t in self.call.statistics), *self.learnable, like(self.call.residual, self.x))
        arguments = (self.x, *((None, None) if moments is None else moments.unbind()), *given, y, *cut.extents)
        options = {k: value for k, value in self.constants.items() if k not in ("FIXED", "BN", "BC")}
        constants = {**options, **cut.constants, "RELU": self.call.relu}
        run(self.x, "whole", "normalize", cut.plan.programs, arguments, constants, warps)
        return y, moments

    def backward(
        self,
        work: Work,
        moments: tuple[Tensor, Tensor],
        sums: tuple[Tensor, ...],
        parts: tuple[Tensor, ...],
        wanted: Wanted,
    ) -> tuple[tuple[Tensor, ...] | None, list[Tensor | None]]:
        """Return scale, ``2 dv / S`` and ``(dm - scale S1) / S`` where x wants them, and the tensors' gradients."""
        numbers = work.numbers(3).unbind() if wanted.x else None
        tensors = self.call.tensors
        found = [
            torch.empty_like(t, memory_format=torch.contiguous_format) if want else None
            for t, want in zip(tensors, wanted.tensors, strict=True)
        ]
        mean, var = (None, None) if self.call.statistics is None else (t.contiguous() for t in self.call.statistics)
        cut = (None, None) if parts[0] is sums[0] else parts
        arguments = (*cut, *sums, *moments, mean, var, *self.learnable, *(numbers or (None,) * 3))
        extents = (*work.planes, work.pixels, work.plan.splits)
        self._run("coefficients_vjp", (*arguments, *self.slots([*found, None]), *extents))
        return numbers, found

    def _run(self, name: str, arguments: tuple[Tensor | int | None, ...]) -> None:
        programs = -(-self.x.shape[1] // CONFIG.channels)
        run(self.x, "coefficients", name, programs, arguments, self.constants, CONFIG.coefficient_warps)


@functools.lru_cache(maxsize=1024)
def _constants(method: Method, eps: float, noise: Noise | None, fixed: bool, instances: int) -> dict[str, Any]:
    """Return what a coefficient kernel is compiled for."""
    kind, (n_a, n_b) = kind_of(method), noise or (1.0, 0.0)
    assert kind is not None
    return {
        "FIXED": fixed,
        "EPS": eps, "NOISE_A": n_a, "NOISE_B": n_b,
        "CENTER": kind.center, "GATE": kind.gate,
        "ON_GAMMA": bool(kind.gate and kind.gated & 1), "ON_BETA": bool(kind.gate and kind.gated & 2),
        "BN": min(CONFIG.instances, 1 << (instances - 1).bit_length()), "BC": CONFIG.channels,
    }  # fmt: skip
