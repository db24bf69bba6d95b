"""The ordinary call of a layer, at once.

In most calls there is nothing of what :meth:`CalibratedNorm.forward` looks for: the child is a plain BatchNorm without
hooks, the method keeps no statistics but the child's, all tensors are plain and of the right shapes. To find that out
part by part took 50 us of a small layer, where all of ``nn.BatchNorm2d`` takes 20. Here the questions are asked in a
row. Where one has another answer, the long way is taken, which knows what it means. What is computed, and by what, is
the same.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Parameter, SyncBatchNorm

from calibnorm.methods import BN, Method
from calibnorm.nn import evaluation
from calibnorm.nn.child import PLAIN
from calibnorm.nn.hooks import has_hooks
from calibnorm.nn.recomputation import saves_to_hooks
from calibnorm.ops import Call, Moving, Step
from calibnorm.ops.autograd import computed
from calibnorm.ops.dispatch import in_c, update_running
from calibnorm.ops.inputs import fits, transformed

if TYPE_CHECKING:
    from calibnorm.nn.layer import CalibratedNorm


_TYPES = {Tensor, Parameter}
_BN = BN()


def normalized(layer: CalibratedNorm, x: Tensor, residual: Tensor | None, relu: bool) -> Tensor | None:
    """Return what the layer makes of x, or None where something is out of the ordinary."""
    if transformed(x) or not x.is_cpu:
        return None
    own = layer.__dict__  # nn.Module's own way to an attribute takes five times as long
    child: Any = own["_modules"]["bn"]
    held = child.__dict__
    # In evaluation a SyncBatchNorm is a plain one; in training it may have others to wait for.
    alone = type(child) in PLAIN or (type(child) is SyncBatchNorm and not (held["training"] and not own["frozen"]))
    if not alone or "forward" in held or has_hooks(child):
        return None
    parameters, buffers, gates, shapes = held["_parameters"], held["_buffers"], own["_parameters"], own["_gate_shapes"]
    try:
        tensors = parameters["weight"], parameters["bias"], *[gates[name] for name in shapes]
        mean, var, count = buffers["running_mean"], buffers["running_var"], buffers["num_batches_tracked"]
    except KeyError:  # something else computes it
        return None
    method, eps, momentum, channels, shape = own["method"], held["eps"], held["momentum"], held["num_features"], x.shape
    if (
        not (type(eps) is float and 0.0 < eps < 1.0 and type(momentum) is float and 0.0 <= momentum <= 1.0)
        or layer._gamma_unseen
        or own["_gate_channels"] != channels  # the child was replaced, and perhaps the gates
    ):
        return None
    simple, takes_statistics, has_own = _statistics_of(method)
    of_batch = takes_statistics and held["training"] and not own["frozen"]
    plain = method.plain_in_eval and not of_batch
    if not (simple or plain) or (has_own and (len(shape) == 2 or shape[-1] == 1)):  # its own may be of one value
        return None
    all_tensors, of_channels = (*tensors, mean, var), (channels,)
    if not {*map(type, all_tensors)} <= _TYPES:
        return None
    if [t.shape for t in all_tensors] != [of_channels, of_channels, *shapes.values(), of_channels, of_channels]:
        return None
    values = x.numel() // channels
    if (
        len(shape) not in layer._ranks
        or shape[1] != channels
        or values <= of_batch  # no values, or one that has no variance
        or not x.is_floating_point()
        or (plain and not in_c(x))  # torch's own finds no moments either
        or not (residual is None or fits(residual, x))
    ):
        return None
    noise = own["noise"] if own["noise_in"] == "always" or own["training"] else None
    step = Step(_BN if plain else method, ("weight", "bias", *shapes), eps, noise)
    given = (mean, var) if takes_statistics and not of_batch else None
    moving = None
    if of_batch and held["track_running_stats"]:
        running = (mean, var) if count is None else (mean, var, count)
        moving = Moving(running, momentum, values / (values - 1))
    at_once = None if saves_to_hooks() else moving  # what may end in them moves nothing before
    call = Call(step, given, tensors, residual, relu, None, at_once)
    y, statistics = computed(x, call)
    if not (of_batch or noise or torch.is_grad_enabled()):
        evaluation.prepare(layer, x, call, has_own)
    if moving is not None and statistics is not None:
        update_running(moving.buffers, *statistics, momentum, moving.unbias)
    return y


@functools.lru_cache(maxsize=256)
def _statistics_of(method: Method) -> tuple[bool, bool, bool]:
    """Return whether a method keeps no others than the child's, whether it takes those, and whether an instance's own.

    In a training step those are of the whole batch.
    """
    simple = not (method.spatial or method.reads_running or method.extra_statistics(method.divisor))
    own = method.own_values(method.divisor, 1) is not None
    return simple and method.ghost_size is None, method.batch_statistics, own
