"""The two functions of a coefficient step that become programs: forward and back."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from calibnorm.ops.coefficients import Call, Step, vjp
from calibnorm.ops.programs.program import Function


def coefficients(step: Step, tensors: int, given: bool) -> Function:
    """Return what finds scale and shift of m, v, so many learnable tensors and, where given, the statistics.

    Where they are not given it finds those of the batch too, if the step takes any.
    """

    def coefficients(m: Tensor, v: Tensor, *fixed: Tensor) -> Sequence[Tensor]:
        statistics = (fixed[tensors], fixed[tensors + 1]) if given else None
        scale, shift, found = Call(step, statistics, fixed[:tensors]).coefficients(m, v)
        return (scale, shift) if given or step.reduction is None else (scale, shift, *found)

    return coefficients


def gradients(step: Step, tensors: int, given: bool) -> Function:
    """Return what finds scale, dm, dv and the gradients of the learnable tensors.

    Of m, v, S1, S2, so many learnable tensors and the statistics, where the step takes some. Given ones are constants,
    others were found by forward.
    """

    def gradients(m: Tensor, v: Tensor, s1: Tensor, s2: Tensor, *fixed: Tensor) -> Sequence[Tensor]:
        statistics = (fixed[tensors], fixed[tensors + 1]) if len(fixed) > tensors else None
        call = Call(step, statistics if given else None, fixed[:tensors], found=None if given else statistics)
        scale, dm, dv, found = vjp(call, m, v, (s1, s2), (True,) * (1 + tensors))
        return [t for t in (scale, dm, dv, *found) if t is not None]

    return gradients
