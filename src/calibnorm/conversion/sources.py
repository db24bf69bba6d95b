"""What a conversion does to a BatchNorm, whoever wrote it: taken apart into child, act and drop, and put together."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import torch
from torch import nn
from torch._guards import detect_fake_mode

from calibnorm.networks.finding import WITH_ACT, Found, batchnorm_of, has_act, parts_of
from calibnorm.nn import CalibratedNorm
from calibnorm.nn import child as children

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def dims(module: nn.Module) -> int:
    """Return the spatial dimensions of the layer that replaces the module."""
    if isinstance(module, CalibratedNorm):
        return module.dims
    if isinstance(module, nn.BatchNorm1d):
        return 1
    return 3 if isinstance(module, nn.BatchNorm3d) else 2


def has_own_act(module: Any) -> bool:
    """Whether a layer applies an activation module after the normalization."""
    carries = isinstance(module, CalibratedNorm) or has_act(module) or children.is_split(module)
    act = getattr(module, "act", None) if carries else None
    return isinstance(act, nn.Module) and not isinstance(act, nn.Identity)


def looks_trained(module: nn.Module) -> bool:
    """Whether the running statistics differ from those of a new layer."""
    child = batchnorm_of(module)
    mean, var = child.running_mean, child.running_var
    if mean is None or var is None or mean.is_meta or detect_fake_mode((mean, var)) is not None:
        return False  # nothing holds a value
    return bool(mean.any()) or bool(torch.ne(var, 1).any())


def tied(model: nn.Module) -> set[int]:
    """Return the ids of the parameters that several modules hold."""
    held = (p for module in model.modules() for p in module._parameters.values() if p is not None)
    return {key for key, count in Counter(map(id, held)).items() if count > 1}


def locked(child: nn.Module, name: str, shared: set[int]) -> str | None:
    """Return why ``weight`` or ``bias`` of a BatchNorm cannot be multiplied in place, or None."""
    for part in parts_of(child):
        stored = part._parameters.get(name, part._buffers.get(name))
        if stored is None and getattr(part, name) is None:
            return f"has no {name} (affine=False)"
        if stored is None:
            return f"computes its {name} (pruned or parametrized); make that permanent with torch.nn.utils"
        if id(stored) in shared:
            return f"shares its {name} with another layer"
    return None


def take_apart(source: Any) -> tuple[nn.Module, nn.Module | None, nn.Module | None]:
    """Return child, drop and act of a source; the child is the source itself, so that nothing of it can get lost.

    A BatchNorm with an activation becomes the class of the BatchNorm that it is; timm's ``convert_splitbn_model``
    hangs drop and act on the split BatchNorm.
    """
    if not (has_act(source) or children.is_split(source)):
        return source, None, None
    drop, act = source._modules.pop("drop", None), source._modules.pop("act", None)
    if has_act(source):
        plain = _plain_classes()
        source.__class__ = plain[next(kind for kind in type(source).__mro__ if kind in plain)]  # cn.fuse subclasses
    return source, drop, act


def put_together(child: Any, drop: nn.Module | None, act: nn.Module | None) -> nn.Module:
    """Return a plain BatchNorm with timm's drop and act again: the inverse of :func:`take_apart`."""
    if drop is not None or act is not None:
        if not children.is_split(child):
            child.__class__ = _with_act_class(child)
        child.drop = nn.Identity() if drop is None else drop
        child.act = nn.Identity() if act is None else act
    plain: nn.Module = child
    return plain


def can_carry_act(child: nn.Module) -> bool:
    """Whether :func:`put_together` can give the child drop and act."""
    return children.is_split(child) or _with_act_class(child) is not None


def _with_act_class(child: nn.Module) -> type[nn.Module] | None:
    """Return timm's class for a BatchNorm with drop and act, or None where it has none."""
    return next((whole for whole, plain in _plain_classes().items() if plain is type(child)), None)


def _plain_classes() -> dict[type[nn.Module], type[nn.Module]]:
    """Return timm's classes with an activation, each with the class of the BatchNorm that it is."""
    timm = sys.modules.get("timm.layers.norm_act")  # where nobody has imported it there is nothing to take apart
    plain = {"BatchNorm2d": nn.BatchNorm2d, "SyncBatchNorm": nn.SyncBatchNorm}
    return {getattr(timm, a): plain.get(b) or getattr(timm, b) for a, b in WITH_ACT.items() if hasattr(timm, a)}


def move_hooks(source: nn.Module, target: nn.Module) -> None:
    """Move forward and backward hooks; the dictionaries themselves move, so that handles still remove them."""
    for name in _HOOKS:
        hooks = getattr(source, name)
        setattr(source, name, type(hooks)())
        hooks.update(getattr(target, name))
        setattr(target, name, hooks)
    if source._is_full_backward_hook is not None:
        target._is_full_backward_hook = source._is_full_backward_hook
        source._is_full_backward_hook = None


def replace(entry: Found, new: nn.Module) -> None:
    """Put a module in every place of another."""
    for parent, attribute in entry.places:
        parent._modules[attribute] = new
