"""Ghost batches: BatchNorm's coefficient step in C for each, between passes over the pixels of all.

A ghost batch is a run of instances, so that its (N, C) numbers are a part of those of the whole batch, in one piece.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from calibnorm.methods import BN
from calibnorm.methods.ghost import GhostBN
from calibnorm.ops.coefficients import Call, Pulled
from calibnorm.ops.cpu import coefficients as by_hand
from calibnorm.ops.cpu import passes
from calibnorm.ops.cpu.passes import wide
from calibnorm.ops.statistics import Statistics
from calibnorm.ops.three_steps import StepByStep

_BN = BN()


def takes(call: Call) -> bool:
    """Whether a call is one of plain ghost batches."""
    return type(call.step.method) is GhostBN and call.statistics is None


def _each(call: Call, *numbers: Tensor) -> Iterator[tuple[Call, list[Tensor]]]:
    """Yield every ghost batch's part of the numbers, with its call."""
    method = call.step.method
    assert isinstance(method, GhostBN)
    tensors = tuple(map(wide, call.tensors))
    plain = Call(call.step._replace(method=_BN), None, tensors)
    for part in zip(*(torch.split(t, method.size) for t in numbers), strict=True):
        yield plain, list(part)


def coefficients(call: Call, m: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Statistics]:
    """Return scale, shift and the statistics of every instance's ghost batch, all (N, C)."""
    found = [by_hand.coefficients(plain, *parts) for plain, parts in _each(call, m, v)]
    rows = [(scale, shift, mean.expand_as(scale), var.expand_as(scale)) for scale, shift, (mean, var) in found]
    scale, shift, mean, var = map(torch.cat, zip(*rows, strict=True))
    return scale, shift, (mean, var)


def pull_back(
    call: Call, m: Tensor, v: Tensor, sums: tuple[Tensor, Tensor], pixels: int, wanted: tuple[bool, ...]
) -> Pulled:
    """Return the gradients from S1 and S2; ``wanted`` is about x and then the learnable tensors."""
    found = [by_hand.gradients(plain, m, v, (one, two), pixels) for plain, (m, v, one, two) in _each(call, m, v, *sums)]
    scale, slope, offset, *tensors = zip(*found, strict=True)
    asked = zip(tensors, call.tensors, wanted[1:], strict=False)  # the last two are those of E and Var
    gradients = [torch.stack(d).sum(0).to(t.dtype) if want else None for d, t, want in asked]
    return Pulled(torch.cat(scale), torch.cat(slope), torch.cat(offset), gradients)


LAYERS = StepByStep(passes, coefficients, pull_back)
