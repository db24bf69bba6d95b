"""What can be converted: every BatchNorm that is understood, whoever wrote it, taken apart into child, act and drop."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from calibnorm.nn import CalibratedNorm
from calibnorm.nn import child as children

# timm's layers that are a BatchNorm followed by dropout and an activation, and the BatchNorm that each of them is.
_WITH_ACT = {"BatchNormAct2d": "BatchNorm2d", "SyncBatchNormAct": "SyncBatchNorm", "FrozenBatchNormAct2d": ""}

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


class Found(NamedTuple):
    """A normalization layer in a model and every place that refers to it."""

    name: str
    module: nn.Module
    places: list[tuple[nn.Module, str]]
    """(parent, attribute) pairs; empty for the model itself."""


def find(model: nn.Module) -> list[Found]:
    """Return the model's BatchNorms and calibrated layers in the order of definition; a shared one appears once."""
    found: dict[int, Found] = {}
    for name, module, parent, attribute in _walk(model, "", None, ""):
        if is_norm(module):
            entry = found.setdefault(id(module), Found(name, module, []))
            if parent is not None:
                entry.places.append((parent, attribute))
    return list(found.values())


def _walk(
    module: nn.Module, name: str, parent: nn.Module | None, attribute: str, seen: set[int] | None = None
) -> Iterator[tuple[str, nn.Module, nn.Module | None, str]]:
    """Yield (name, module, parent, attribute), every reference to a norm, and every other module once."""
    seen = set() if seen is None else seen
    yield name, module, parent, attribute
    if is_norm(module) or id(module) in seen:
        return
    seen.add(id(module))
    # named_children() would list a module that is registered under two names only once
    for key, child in module._modules.items():
        if child is not None:
            yield from _walk(child, f"{name}.{key}" if name else key, module, key, seen)


def is_norm(module: nn.Module) -> bool:
    """Whether the module is a calibrated layer or some BatchNorm, understood or not."""
    return (
        isinstance(module, CalibratedNorm | _BatchNorm)
        or children.is_frozen(module)
        or type(module).__name__ in _WITH_ACT
    )


def refusal(module: nn.Module) -> str | None:
    """Return why a BatchNorm cannot be converted, or None."""
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    if isinstance(module, LazyModuleMixin):
        return f"is a {kind}, whose channels are not known yet; run one forward of the network first"
    hooks = [type(hook).__module__ for hook in module._forward_pre_hooks.values()]
    if any(where.startswith("torch.nn.utils") for where in hooks):
        return (
            "has its weight rewritten before each forward by torch.nn.utils (pruning, spectral_norm); make that "
            "permanent first, or use torch.nn.utils.parametrize"
        )
    if type(module).__name__ in _WITH_ACT or children.accepts(module):
        return None
    return f"is a {kind}, whose own forward computes something that is not known; leave it out with exclude="


def dims(module: nn.Module) -> int:
    """Return the spatial dimensions of the layer that replaces the module."""
    if isinstance(module, nn.BatchNorm1d):
        return 1
    return 3 if isinstance(module, nn.BatchNorm3d) else 2


def is_frozen(module: nn.Module) -> bool:
    """Whether a source's statistics are constants."""
    return children.is_frozen(module) or type(module).__name__ == "FrozenBatchNormAct2d"


def tensors(module: Any) -> list[nn.Module]:
    """Return the modules that hold gamma and beta: the BatchNorm, and the further parts of a split one."""
    return [module, *module.aux_bn] if children.is_split(module) else [module]


def take_apart(source: Any) -> tuple[nn.Module, nn.Module | None, nn.Module | None]:
    """Return child, drop and act of a source; the child is the source itself wherever it is a plain BatchNorm.

    The child shares the source's parameters and buffers. Hooks stay on the source: see :func:`move_hooks`.
    """
    if type(source).__name__ not in _WITH_ACT:
        # timm's convert_splitbn_model hangs drop and act on the split BatchNorm itself
        return source, source._modules.pop("drop", None), source._modules.pop("act", None)
    if is_frozen(source):
        child = sys.modules[type(source).__module__].FrozenBatchNorm2d(source.weight.numel(), eps=source.eps)
    else:
        kind = getattr(nn, _WITH_ACT[type(source).__name__])
        child = kind(source.num_features, source.eps, source.momentum, source.affine, source.track_running_stats)
        child.process_group = getattr(source, "process_group", None)
    _share(source, child)
    return child, getattr(source, "drop", None), getattr(source, "act", None)


def put_together(child: Any, drop: nn.Module | None, act: nn.Module | None) -> nn.Module:
    """Return a plain BatchNorm with timm's drop and act again: the inverse of :func:`take_apart`."""
    if drop is None and act is None:
        return cast(nn.Module, child)
    if children.is_split(child):
        child.drop, child.act = drop, act
        return cast(nn.Module, child)
    from timm.layers import norm_act  # only a timm network has these

    frozen, sync = children.is_frozen(child), isinstance(child, nn.SyncBatchNorm)
    kind = norm_act.FrozenBatchNormAct2d if frozen else norm_act.SyncBatchNormAct if sync else norm_act.BatchNormAct2d
    whole: Any = kind(children.num_features(child), eps=child.eps)
    if not frozen:
        whole.momentum, whole.affine = child.momentum, child.affine
        whole.track_running_stats = child.track_running_stats
    whole.process_group = getattr(child, "process_group", None)
    _share(child, whole)
    whole.drop, whole.act = drop, act
    return cast(nn.Module, whole)


def _share(source: nn.Module, target: nn.Module) -> None:
    """Let the target hold the source's parameters and buffers, by the same names, and its mode."""
    target._parameters.update(source._parameters)
    target._buffers.update(source._buffers)
    target.training = source.training


def move_hooks(source: nn.Module, target: nn.Module) -> None:
    """Move forward and backward hooks; the dictionaries themselves move, so that handles still remove them."""
    for name in _HOOKS:
        hooks = getattr(source, name)
        setattr(source, name, type(hooks)())
        setattr(target, name, hooks)
    target._is_full_backward_hook = source._is_full_backward_hook
    source._is_full_backward_hook = None


def replace(entry: Found, new: nn.Module) -> None:
    """Put a module in every place of another."""
    for parent, attribute in entry.places:
        parent._modules[attribute] = new


def looks_trained(module: Any) -> bool:
    """Whether the running statistics differ from those of a new layer."""
    mean, var = module.running_mean, module.running_var
    if mean is None or mean.device.type == "meta":
        return False
    return bool(mean.any()) or bool(torch.ne(var, 1).any())
