"""The call of a layer in evaluation, without gradients, prepared once.

From one image to the next nothing of a layer changes but its input. So what :mod:`calibnorm.nn.ordinary` has found out
and packed for C is kept, with what it was found from, and is used for as long as that is what the layer has: the same
child, options and tensors, at the same places in memory. Where anything is another, the call is an ordinary one, which
prepares anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from calibnorm.methods import Method
from calibnorm.nn.hooks import has_hooks
from calibnorm.ops import Call
from calibnorm.ops.cpu import fused, traced
from calibnorm.ops.dispatch import choose
from calibnorm.ops.inputs import fits, transformed
from calibnorm.ops.kernel_methods import kind_of

if TYPE_CHECKING:
    from calibnorm.nn.layer import CalibratedNorm


class _Known(NamedTuple):
    """A call, and what it was prepared from."""

    run: Callable[[Tensor, Tensor | None, bool], Tensor]
    child: nn.Module
    method: Method
    eps: float
    given: bool
    """Whether the running statistics are among the tensors."""
    channels: int
    ranks: tuple[int, ...]
    one_pixel: bool
    """Whether planes of one pixel can be taken: an instance's own statistics may be of one value."""
    tensors: tuple[Tensor, ...]
    places: tuple[int, ...]
    sizes: tuple[int, ...]


def prepare(layer: CalibratedNorm, x: Tensor, call: Call) -> None:
    """Keep what an ordinary call of x without gradients, noise and statistics of the batch was made of.

    Other backends, and tensors in other dtypes than float32, are left to ordinary calls.
    """
    own, (method, _, eps, *_), channels = layer.__dict__, call.step, x.shape[1]
    own.pop("_prepared", None)
    tensors = (*call.tensors, *(call.statistics or ()))
    if choose(x).name != "cpu" or not all(t.dtype is torch.float32 and t.is_contiguous() for t in tensors):
        return
    run = fused.Prepared(call) if kind_of(method) else traced.prepared(x, call)
    if run is not None:
        places, sizes = tuple(t.data_ptr() for t in tensors), tuple(t.numel() for t in tensors)
        one_pixel, given = method.own_values(channels, 1) is None, call.statistics is not None
        options = own["_modules"]["bn"], method, eps, given, channels, layer._ranks, one_pixel
        own["_prepared"] = _Known(run, *options, tensors, places, sizes)


def normalized(layer: CalibratedNorm, x: Tensor, residual: Tensor | None, relu: bool) -> Tensor | None:
    """Return what the layer makes of x, or None where nothing is prepared for this call."""
    if torch.is_grad_enabled() or transformed(x):  # first: a compiled graph must not depend on what is prepared
        return None
    own = layer.__dict__
    known: _Known | None = own.get("_prepared")
    if known is None:
        return None
    run, child, method, eps, given, channels, ranks, one_pixel, tensors, places, sizes = known
    held, shape = child.__dict__, x.shape
    if (
        own["_modules"]["bn"] is not child
        or (given and held["training"] and not own["frozen"])
        or "forward" in held
        or has_hooks(child)
        or own["method"] is not method
        or own["noise"] is not None
        or held["eps"] != eps
        or held["num_features"] != channels
        or own["_gate_channels"] != channels
        or layer._gamma_unseen
        or len(shape) not in ranks
        or shape[1] != channels
        or not (one_pixel or (len(shape) > 2 and shape[-1] > 1))
        or not x.numel()
        or not (residual is None or fits(residual, x))
        or choose(x).name != "cpu"
    ):
        return None
    parameters, buffers, gates = held["_parameters"], held["_buffers"], own["_parameters"]
    try:
        found = [parameters["weight"], parameters["bias"], *[gates[name] for name in own["_gate_shapes"]]]
        if given:
            found += buffers["running_mean"], buffers["running_var"]
    except KeyError:  # something else computes it
        return None
    for t, kept, place, size in zip(found, tensors, places, sizes, strict=True):
        if t is not kept or t.data_ptr() != place or t.dtype is not torch.float32:
            return None
        if t.numel() != size or not t.is_contiguous():
            return None
    return run(x, residual, relu)
