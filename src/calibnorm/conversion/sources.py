"""What can be converted: every BatchNorm that is understood, whoever wrote it, taken apart into child, act and drop."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parallel import DistributedDataParallel

from calibnorm.nn import CalibratedNorm
from calibnorm.nn import child as children

# timm's layers that are a BatchNorm followed by dropout and an activation, and the BatchNorm that each of them is.
_WITH_ACT = {
    "BatchNormAct2d": "BatchNorm2d",
    "SyncBatchNormAct": "SyncBatchNorm",
    "FrozenBatchNormAct2d": "FrozenBatchNorm2d",
}
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
# By name, because importing them would cost every user of the library; DistributedDataParallel is imported by torch.
_WRAPPERS = {"FullyShardedDataParallel", "FSDPModule", "OptimizedModule"}


class Found(NamedTuple):
    """A normalization layer in a model and every place that refers to it."""

    name: str
    module: nn.Module
    places: list[tuple[nn.Module, str]]
    """(parent, attribute) pairs; empty for the model itself."""
    names: list[str]
    """The name of every place, the first one first."""

    @property
    def title(self) -> str:
        """The name for messages: the model itself has none."""
        return self.name or "(model)"


def check_model(model: nn.Module) -> None:
    """Refuse what is no module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")


def check_unwrapped(model: nn.Module) -> None:
    """Refuse a model whose wrapper would go on using the layers, or the parameters, that it was built from."""
    check_model(model)
    for module in model.modules():
        kinds = {base.__name__ for base in type(module).__mro__}
        if isinstance(module, DistributedDataParallel) or kinds & _WRAPPERS:
            raise ValueError(
                f"the network is wrapped in {type(module).__name__}, which would not see that its layers change; "
                "change the network first, then wrap it"
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError("the network holds a ScriptModule, whose layers cannot change; change it before scripting")


def find(model: nn.Module) -> list[Found]:
    """Return the model's BatchNorms and calibrated layers in the order of definition; a shared one appears once."""
    check_model(model)
    found: dict[int, Found] = {}
    for name, module, parent, attribute in _walk(model, "", None, "", set()):
        if is_norm(module):
            entry = found.setdefault(id(module), Found(name, module, [], []))
            entry.names.append(name)
            if parent is not None:
                entry.places.append((parent, attribute))
    return list(found.values())


def _walk(
    module: nn.Module, name: str, parent: nn.Module | None, attribute: str, seen: set[int]
) -> Iterator[tuple[str, nn.Module, nn.Module | None, str]]:
    """Yield (name, module, parent, attribute), every reference to a norm, and every other module once."""
    yield name, module, parent, attribute
    if isinstance(module, CalibratedNorm) or is_norm(module) or id(module) in seen:
        return
    seen.add(id(module))
    # named_children() would list a module that is registered under two names only once
    for key, child in module._modules.items():
        if child is not None:
            yield from _walk(child, f"{name}.{key}" if name else key, module, key, seen)


def is_norm(module: nn.Module) -> bool:
    """Whether the module is a calibrated layer or some BatchNorm, understood or not."""
    if isinstance(module, CalibratedNorm):
        return module.method.normalizes
    return isinstance(module, _BatchNorm) or children.is_frozen(module) or _has_act(module)


def _has_act(module: nn.Module) -> bool:
    kind = type(module)
    return kind.__name__ in _WITH_ACT and kind.__module__.startswith("timm.")


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
    if "forward" not in module.__dict__ and (_has_act(module) or children.accepts(module)):
        return None
    return f"is a {kind}, whose own forward computes something that is not known; leave it out with exclude="


def holder(module: Any) -> Any:
    """Return what holds gamma, beta and the statistics: a calibrated layer's child, or the BatchNorm itself."""
    return module.bn if isinstance(module, CalibratedNorm) else module


def tensors(child: Any) -> list[Any]:
    """Return the modules that hold gamma and beta: the BatchNorm, and the further parts of a split one."""
    return [child, *child.aux_bn] if children.is_split(child) else [child]


def features(module: nn.Module) -> int:
    """Return C."""
    return children.num_features(holder(module))


def dims(module: nn.Module) -> int:
    """Return the spatial dimensions of the layer that replaces the module."""
    if isinstance(module, CalibratedNorm):
        return module.dims
    if isinstance(module, nn.BatchNorm1d):
        return 1
    return 3 if isinstance(module, nn.BatchNorm3d) else 2


def is_frozen(module: nn.Module) -> bool:
    """Whether a BatchNorm's statistics are constants."""
    return children.is_frozen(module) or (_has_act(module) and type(module).__name__ == "FrozenBatchNormAct2d")


def has_own_act(module: Any) -> bool:
    """Whether a layer applies an activation module after the normalization."""
    carries = isinstance(module, CalibratedNorm) or _has_act(module) or children.is_split(module)
    act = getattr(module, "act", None) if carries else None
    return isinstance(act, nn.Module) and not isinstance(act, nn.Identity)


def looks_trained(module: nn.Module) -> bool:
    """Whether the running statistics differ from those of a new layer."""
    child = holder(module)
    mean, var = child.running_mean, child.running_var
    if mean is None or var is None or mean.is_meta:
        return False
    return bool(mean.any()) or bool(torch.ne(var, 1).any())


def tied(model: nn.Module) -> set[int]:
    """Return the ids of the parameters that several modules hold."""
    held = (p for module in model.modules() for p in module._parameters.values() if p is not None)
    return {key for key, count in Counter(map(id, held)).items() if count > 1}


def locked(child: nn.Module, name: str, shared: set[int]) -> str | None:
    """Return why ``weight`` or ``bias`` of a BatchNorm cannot be multiplied in place, or None."""
    for part in tensors(child):
        stored = part._parameters.get(name, part._buffers.get(name))
        if stored is None and getattr(part, name) is None:
            return f"has no {name} (affine=False)"
        if stored is None:
            return f"computes its {name} (pruned or parametrized); make that permanent with torch.nn.utils"
        if id(stored) in shared:
            return f"shares its {name} with another layer"
    return None


def like(module: nn.Module) -> Tensor | None:
    """Return a tensor of the device and dtype that the module computes with; None where it holds none."""
    held = (*module.parameters(), *module.buffers())
    return next((tensor for tensor in held if tensor.is_floating_point()), None)


def take_apart(source: Any) -> tuple[nn.Module, nn.Module | None, nn.Module | None]:
    """Return child, drop and act of a source; the child is the source itself, so that nothing of it can get lost.

    A BatchNorm with an activation becomes the class of the BatchNorm that it is; timm's ``convert_splitbn_model``
    hangs drop and act on the split BatchNorm.
    """
    if not (_has_act(source) or children.is_split(source)):
        return source, None, None
    drop, act = source._modules.pop("drop", None), source._modules.pop("act", None)
    if _has_act(source):
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
    return {getattr(timm, a): plain.get(b) or getattr(timm, b) for a, b in _WITH_ACT.items() if hasattr(timm, a)}


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
