"""One call of a layer's three steps, and all that they find: what every fused implementation is checked with."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from calibnorm.methods import Method
from calibnorm.ops import Call, Step
from calibnorm.ops.three_steps import ThreeSteps, Wanted
from drawn import randn
from pass_checks import laid


def call_of(method: Method, channels: int, given: bool, end: str, shape: tuple[int, ...], dtype: torch.dtype) -> Call:
    own = method.parameters(channels)
    names, shapes = ("weight", "bias", *own), [(channels,)] * 2 + [spec.shape for spec in own.values()]
    tensors = tuple(0.3 + randn(*its, seed=30 + i, dtype=dtype) for i, its in enumerate(shapes))
    statistics = (randn(channels, seed=5, dtype=dtype), 0.5 + randn(channels, seed=6, dtype=dtype).abs())
    residual = randn(*shape, seed=7, dtype=dtype) if "residual" in end else None
    return Call(Step(method, names, 1e-3, (0.8, 0.5)), statistics if given else None, tensors, residual, "relu" in end)


def moved(call: Call, device: torch.device | str, dtype: torch.dtype | None = None, layout: str = "contiguous") -> Call:
    """The same call on a device, with a residual of the dtype and the layout."""
    residual = None if call.residual is None else laid(call.residual.to(dtype), layout).to(device)
    given = None if call.statistics is None else (call.statistics[0].to(device), call.statistics[1].to(device))
    return call._replace(tensors=tuple(t.to(device) for t in call.tensors), statistics=given, residual=residual)


def both_ways(how: ThreeSteps, x: Tensor, dy: Tensor, call: Call, found_before: bool = False) -> Iterator[Tensor]:
    """Everything that the three steps of ``how`` find, forward and back, where asked with the statistics of forward."""
    done = how.forward(x, call)
    yield done.y
    yield from (t.double() for t in done.statistics)
    kept = call if call.relu else call._replace(residual=None)  # as autograd keeps it
    if found_before and call.statistics is None:
        kept = kept._replace(found=done.statistics)
    wanted = Wanted(True, call.residual is not None, (True,) * len(call.tensors))
    found = how.backward(dy, x, done.moments, kept, wanted)
    yield from (t for t in (found.x, found.residual, *found.tensors) if t is not None)
