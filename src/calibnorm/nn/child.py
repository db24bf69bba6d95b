"""Reading the child ``bn`` of a layer: which module it is now, and what that means for one forward.

Other software finds BatchNorm layers by their class and replaces, freezes or synchronizes them. A layer therefore owns
gamma, beta and the statistics in one plain child and follows whatever it finds there; a child that it does not
understand is refused by name, never misread.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from calibnorm import _checks
from calibnorm.nn.hooks import COMPUTE_WEIGHT

_TENSORS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
PLAIN = frozenset({nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d})


_Tensors = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


class ChildState(NamedTuple):
    """What one forward needs from the child."""

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None
    momentum: float | None
    eps: float
    use_batch: bool
    """Normalize with the statistics of the batch."""
    update: bool
    """Move the running statistics."""
    group: dist.ProcessGroup | None = None
    """The processes that share the statistics of the batch."""


def is_frozen(child: nn.Module) -> bool:
    """Whether the child is torchvision's (or timm's, detectron2's) FrozenBatchNorm2d: four buffers, no state."""
    return type(child).__name__ == "FrozenBatchNorm2d" and {
        "weight",
        "bias",
        "running_mean",
        "running_var",
    } <= set(child._buffers)


def is_split(child: nn.Module) -> bool:
    """Whether the child is timm's SplitBatchNorm2d: a BatchNorm with one more for every further part of a batch."""
    return type(child).__name__ == "SplitBatchNorm2d" and isinstance(getattr(child, "aux_bn", None), nn.ModuleList)


def is_batchnorm(child: nn.Module) -> bool:
    """Whether the child is a BatchNorm that computes what torch's own compute."""
    return (
        isinstance(child, _BatchNorm)
        and not isinstance(child, LazyModuleMixin)
        and type(child).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward)
    )


def accepts(child: nn.Module) -> bool:
    """Whether a layer can follow the child."""
    return is_batchnorm(child) or is_frozen(child) or is_split(child)


def num_features(child: Any) -> int:
    """Return the channels of the child; a frozen one may have them only as the size of its tensors."""
    stored = getattr(child, "num_features", None)
    return int(child.weight.numel() if stored is None else stored)


def parts(child: Any) -> list[nn.Module]:
    """Return the BatchNorms that share the batch: the child, and the others of a split one in training."""
    return [child, *child.aux_bn] if is_split(child) and child.training else [child]


def read(child: Any, where: str) -> ChildState:
    """Return the state of one BatchNorm for one forward.

    Args:
        child: The layer's ``bn``, or one part of a split one.
        where: The layer, for messages.

    Raises:
        TypeError: The child is of a class that the layer does not understand.
        ValueError: Its tensors, eps or momentum cannot be used.
    """
    plain = type(child) in PLAIN
    if not plain or "forward" in child.__dict__:
        _check_class(child, where)
    if not plain and is_frozen(child):
        frozen: _Tensors = (child.weight, child.bias, child.running_mean, child.running_var, None)
        return _state(frozen, None, child.eps, False, False, num_features(child), where)
    for hook in child._forward_pre_hooks.values():
        if isinstance(hook, COMPUTE_WEIGHT):
            hook(child, ())
    tensors = _tensors(child)
    _, _, mean, var, _ = tensors
    use_batch = child.training or (mean is None and var is None)
    update = child.training and child.track_running_stats and mean is not None
    state = _state(tensors, child.momentum, child.eps, use_batch, update, child.num_features, where)
    # As torch's: eval exchanges nothing, without running statistics neither.
    return state._replace(group=_group(child)) if child.training and isinstance(child, nn.SyncBatchNorm) else state


def _check_class(child: Any, where: str) -> None:
    """Refuse a child that the layer does not understand."""
    if type(child).__name__ == "FullyShardedDataParallel":
        raise TypeError(
            f"{where}: FSDP took its child `bn` alone, and only FSDP's own forward gathers its shards; wrap the whole "
            "layer as one unit. Under mixed precision FSDP1 does this to every BatchNorm: also pass "
            "MixedPrecision(..., _module_classes_to_ignore=())"
        )
    if not (type(child) in PLAIN or accepts(child)):
        remedy = "put back a torch BatchNorm, SyncBatchNorm or FrozenBatchNorm2d"
        if type(child).__module__.startswith("torch.ao."):
            remedy = "a layer stays in floating point: set the child's qconfig = None before preparing the network"
        elif any(map(accepts, child.modules())):
            remedy = f"wrap the whole layer as one unit, or {remedy}"
        raise TypeError(
            f"{where}: its child `bn` is a {type(child).__module__}.{type(child).__qualname__}, which it does not "
            f"know how to read; {remedy}"
        )
    if "forward" in child.__dict__:
        raise TypeError(
            f"{where}: something has put a forward of its own on the child `bn` (as accelerate's hooks and wrappers of "
            "functions do), which would never run; put it on the layer itself, or leave BatchNorms out of it"
        )


def check(child: Any, x: Tensor, where: str) -> None:
    """Refuse a child that cannot be followed, before one of its hooks runs; see :func:`read`."""
    _check_class(child, where)
    refuse_shards(child.weight, child.bias, x, where)


def _tensors(child: Any) -> _Tensors:
    """Return the tensors of ``_TENSORS``."""
    if type(child) in PLAIN:
        # What the names below find, without nn.Module's way of finding them, which takes 0.6 us a name.
        held, kept = child._parameters, child._buffers
        try:
            return held["weight"], held["bias"], kept["running_mean"], kept["running_var"], kept["num_batches_tracked"]
        except KeyError:
            return _by_name(child)
    return _by_name(child)


def _by_name(child: Any) -> _Tensors:
    """Return the tensors where some are computed by something else, or are attributes."""
    # BatchNorms that were pickled before PyTorch 0.4.1 have no count.
    return (*(getattr(child, name) for name in _TENSORS[:4]), getattr(child, "num_batches_tracked", None))


def _state(
    tensors: _Tensors,
    momentum: float | None,
    eps: float,
    use_batch: bool,
    update: bool,
    channels: int,
    where: str,
) -> ChildState:
    """Return the state of what was read, checked."""
    eps, momentum = _checks.eps(eps, frozen=not use_batch), _checks.momentum(momentum)
    if _checks.sizes_known():
        for name, tensor in zip(_TENSORS[:4], tensors, strict=False):
            if tensor is not None and tensor.shape != (channels,):
                raise ValueError(
                    f"{where}: bn.{name} has shape {tuple(tensor.shape)} instead of ({channels},). If a sharding "
                    "wrapper (FSDP) took the child `bn` alone, wrap the whole layer as one unit"
                )
    return ChildState(*tensors, momentum, eps, use_batch, update)


def refuse_shards(weight: Tensor | None, bias: Tensor | None, x: Tensor, where: str) -> None:
    """Refuse parameters that FSDP2 holds as shards: it gathers them when it is called, and nobody calls a child."""
    if type(x) is Tensor and "DTensor" in (type(weight).__name__, type(bias).__name__):
        raise ValueError(
            f"{where}: the parameters of its child `bn` are shards (DTensor), which only FSDP's own forward gathers; "
            "do not call fully_shard on the child alone, wrap the whole layer as one unit"
        )


def _group(child: nn.SyncBatchNorm) -> dist.ProcessGroup | None:
    """Return the child's process group, by default all processes; None where there are not several."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    group = child.process_group or dist.group.WORLD
    return group if group is not None and dist.get_world_size(group) > 1 else None


def weight_of_batch(state: ChildState) -> float | Tensor:
    """Return the weight of this batch in the running statistics; ``momentum=None`` is a cumulative average.

    Without a count an average cannot move: the weight is 0, as torch's.
    """
    if state.momentum is not None:
        return state.momentum
    if state.num_batches_tracked is None:
        return 0.0
    assert state.running_mean is not None
    # A tensor, not a number: reading the count would break a compiled graph. In float32 the weight alone would be an
    # error of 3e-8 in float64 statistics.
    dtype = torch.promote_types(state.running_mean.dtype, torch.float32)
    return 1.0 / (state.num_batches_tracked + 1).to(dtype)
