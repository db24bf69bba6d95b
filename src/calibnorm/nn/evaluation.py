"""The call of a layer in evaluation, without gradients, prepared once.

From one image to the next nothing of a layer changes but its input. So what :mod:`calibnorm.nn.ordinary` has found out
and packed for C is kept, with what it was found from, and is used for as long as that is what the layer has: the same
child, options and tensors, at the same places in memory. Where anything is another, the call is an ordinary one, which
prepares anew. Nothing here keeps a tensor or a child alive.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor, nn

from calibnorm.nn.hooks import has_hooks
from calibnorm.ops import Call
from calibnorm.ops.cpu import fused, traced
from calibnorm.ops.dispatch import in_c
from calibnorm.ops.inputs import DTYPES, fits, transformed
from calibnorm.ops.kernel_methods import kind_of

if TYPE_CHECKING:
    from calibnorm.nn.layer import CalibratedNorm


class _Known(NamedTuple):
    """A call, and what it was prepared from."""

    run: Callable[[Tensor, Tensor | None, bool], Tensor]
    child: ref[nn.Module]
    options: tuple[Any, ...]
    """As :func:`_options` has them."""
    given: bool
    """Whether the running statistics are among the tensors."""
    own_values: bool
    """Whether an instance has statistics of its own, which are refused where they would be of one value."""
    ranks: tuple[int, ...]
    tensors: tuple[ref[Tensor], ...]
    places: tuple[int, ...]
    shapes: tuple[torch.Size, ...]


def prepare(layer: CalibratedNorm, x: Tensor, call: Call, own_values: bool) -> None:
    """Keep what an ordinary call of x without gradients, noise and statistics of the batch was made of.

    Other backends, and tensors in other dtypes than float32, are left to ordinary calls.
    """
    own, tensors = layer.__dict__, (*call.tensors, *(call.statistics or ()))
    own.pop("_prepared", None)
    plain = all(t.dtype is torch.float32 and t.is_contiguous() and not t.is_neg() for t in tensors)
    if not plain or not in_c(x):
        return
    child, kernels = layer.bn, fused if kind_of(call.step.method) else traced
    run = kernels.prepared(x, call)
    if run is not None:
        of_tensors = zip(*((ref(t), t.data_ptr(), t.shape) for t in tensors), strict=True)
        options, given = _options(own, child), call.statistics is not None
        own["_prepared"] = _Known(run, ref(child), options, given, own_values, layer._ranks, *of_tensors)


def normalized(layer: CalibratedNorm, x: Tensor, residual: Tensor | None, relu: bool) -> Tensor | None:
    """Return what the layer makes of x, or None where nothing is prepared for this call."""
    if torch.is_grad_enabled() or transformed(x):  # first: a compiled graph must not depend on what is prepared
        return None
    own: dict[str, Any] = layer.__dict__
    known: _Known | None = own.get("_prepared")
    if known is None:
        return None
    child: nn.Module = own["_modules"]["bn"]
    run, known_child, options, given, own_values, ranks, tensors, places, shapes = known
    held, shape = child.__dict__, x.shape
    if (
        known_child() is not child
        or _options(own, child) != options
        or (given and held["training"] and not own["frozen"])
        or (own["noise"] is not None and (own["noise_in"] == "always" or own["training"]))
        or "forward" in held
        or has_hooks(child)
        or layer._gamma_unseen
        or len(shape) not in ranks
        or shape[1] != held["num_features"]
        or (own_values and (len(shape) == 2 or shape[-1] == 1))
        or x.dtype not in DTYPES
        or not x.numel()
        or not (residual is None or fits(residual, x))
        or not in_c(x)
    ):
        return None
    parameters, buffers, gates = held["_parameters"], held["_buffers"], own["_parameters"]
    try:
        found = [parameters["weight"], parameters["bias"], *[gates[name] for name in own["_gate_shapes"]]]
        if given:
            found += buffers["running_mean"], buffers["running_var"]
    except KeyError:  # something else computes it
        return None
    for t, kept, place, its_shape in zip(found, tensors, places, shapes, strict=True):
        the_same = kept() is t
        if t is None or not the_same or t.data_ptr() != place or t.dtype is not torch.float32:
            return None
        if t.shape != its_shape or not t.is_contiguous() or t.is_neg():
            return None
    return run(x, residual, relu)


def _options(own: dict[str, Any], child: nn.Module) -> tuple[Any, ...]:
    """Return what a call depends on beside tensors and modes."""
    held = child.__dict__
    return type(child), own["method"], held["eps"], held["momentum"], held["num_features"], own["_gate_channels"]
