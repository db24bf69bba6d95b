"""The step of a layer whose statistics several processes share, cut where they exchange, as functions for programs.

Forward: what this process has to say, then E and Var of all, then the ordinary step with these given. Back: the
gradient with the statistics held constant and that of the statistics, then what all processes' adds to it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from calibnorm.ops.coefficients import Call, Step, vjp_but_statistics, vjp_of_instance
from calibnorm.ops.programs.program import Function
from calibnorm.ops.programs.recording import Refused
from calibnorm.ops.synchronized import merged, spread


def statistics(step: Step) -> Function:
    """Return what finds E and Var of this process alone, of m, v and the learnable tensors."""

    def statistics(m: Tensor, v: Tensor, *tensors: Tensor) -> Sequence[Tensor]:
        return step.reduce(step.instance(m, v, tensors)[0])

    return statistics


def of_all(channels: int) -> Function:
    """Return what finds E, Var and the values they are of, of what every process sent."""
    return lambda received: merged(received, channels)


def gradients_but_statistics(step: Step) -> Function:
    """Return what finds scale, slope, offset, the gradients of the learnable tensors and those of E and Var.

    Of m, v, S1, S2, the learnable tensors, E, Var and the pixels of a plane, (1,).
    """

    def gradients(m: Tensor, v: Tensor, s1: Tensor, s2: Tensor, *fixed: Tensor) -> Sequence[Tensor]:
        *tensors, mean, var, pixels = fixed
        call = Call(step, None, tuple(tensors), found=(mean, var))
        direct = vjp_but_statistics(call, m, v, (s1, s2), (True,) * (1 + len(tensors)))
        if direct.of_statistics is None:
            raise Refused("statistics that the input does not enter")
        dm, dv, *found = direct.found
        scale = direct.scale
        return [scale, 2.0 * dv / pixels, (dm - scale * s1) / pixels, *found, *direct.of_statistics]

    return gradients


def gradients_through_statistics(step: Step, channels: int) -> Function:
    """Return what finds slope, offset and the gradients of the learnable tensors.

    Of m, v, slope and offset as they are so far, then the learnable tensors, their gradients so far, E, dE and dVar of
    all processes, (2, C), the values they are of and the pixels of a plane.
    """

    def gradients(m: Tensor, v: Tensor, slope: Tensor, offset: Tensor, *fixed: Tensor) -> Sequence[Tensor]:
        *fixed_pairs, mean, total, values, pixels = fixed
        count = len(fixed_pairs) // 2
        leaves = [t.detach().requires_grad_() for t in (m, v, *fixed_pairs[:count])]
        with torch.enable_grad():
            x, _ = step.instance(leaves[0], leaves[1], tuple(leaves[2:]))
        entering = spread(x.M.detach(), mean, total, values, pixels, channels)
        dm, dv, *more = vjp_of_instance(x, leaves, entering)
        found = [one + through for one, through in zip(fixed_pairs[count:], more, strict=True)]
        return [slope + 2.0 * dv / pixels, offset + dm / pixels, *found]

    return gradients
