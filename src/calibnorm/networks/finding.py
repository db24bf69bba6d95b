"""The normalization layers of a network: where they are, and what they are, whoever wrote them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parallel import DistributedDataParallel

from calibnorm.nn import CalibratedNorm
from calibnorm.nn import child as children

WITH_ACT = {
    "BatchNormAct2d": "BatchNorm2d",
    "SyncBatchNormAct": "SyncBatchNorm",
    "FrozenBatchNormAct2d": "FrozenBatchNorm2d",
}
"""timm's layers that are a BatchNorm followed by dropout and an activation, and the BatchNorm that each of them is."""
# By name, because importing them would cost every user of the library; DistributedDataParallel is imported by torch.
_WRAPPERS = {"FullyShardedDataParallel", "FSDPModule", "OptimizedModule"}
_PREPARED = "prepared for quantization, which knows the layers that it found; change the network first, then prepare it"


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
        if "_observed_graph_module_attrs" in getattr(module, "meta", ()):
            raise ValueError(f"the network holds a {type(module).__name__} that is {_PREPARED}")
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError("the network holds a ScriptModule, whose layers cannot change; change it before scripting")


def find_norms(model: nn.Module) -> list[Found]:
    """Return the model's BatchNorms and calibrated layers in the order of definition; a shared one appears once."""
    return [entry for entry in find_layers(model) if is_norm(entry.module)]


def find_layers(model: nn.Module) -> list[Found]:
    """Return what :func:`find_norms` does, and between them the layers that scale without normalizing (SE alone)."""
    check_model(model)
    found: dict[int, Found] = {}
    for name, module, parent, attribute in _walk(model, "", None, "", set()):
        if _is_layer(module):
            entry = found.setdefault(id(module), Found(name, module, [], []))
            entry.names.append(name)
            if parent is not None:
                entry.places.append((parent, attribute))
    return list(found.values())


def _walk(
    module: nn.Module, name: str, parent: nn.Module | None, attribute: str, seen: set[int]
) -> Iterator[tuple[str, nn.Module, nn.Module | None, str]]:
    """Yield (name, module, parent, attribute), every reference to a layer, and every other module once."""
    yield name, module, parent, attribute
    if _is_layer(module) or id(module) in seen:
        return
    seen.add(id(module))
    # named_children() would list a module that is registered under two names only once
    for key, child in module._modules.items():
        if child is not None:
            yield from _walk(child, f"{name}.{key}" if name else key, module, key, seen)


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, CalibratedNorm) or is_norm(module)


def is_norm(module: nn.Module) -> bool:
    """Whether the module is a calibrated layer that normalizes or some BatchNorm, understood or not."""
    if isinstance(module, CalibratedNorm):
        return module.method.normalizes
    return isinstance(module, _BatchNorm) or children.is_frozen(module) or has_act(module)


def has_act(module: nn.Module) -> bool:
    """Whether the module is one of timm's BatchNorms with an activation."""
    kind = type(module)
    return kind.__name__ in WITH_ACT and kind.__module__.startswith("timm.")


def is_frozen(module: nn.Module) -> bool:
    """Whether a BatchNorm's statistics are constants."""
    return children.is_frozen(module) or (has_act(module) and type(module).__name__ == "FrozenBatchNormAct2d")


def refusal(module: nn.Module) -> str | None:
    """Return why a BatchNorm or a layer is not understood, as in "bn1 is a LazyBatchNorm2d, ...", or None."""
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    if isinstance(module, LazyModuleMixin):
        return f"is a {kind}, whose channels are not known yet; run one forward of the network first"
    hooks = [type(hook).__module__ for hook in module._forward_pre_hooks.values()]
    if any(where.startswith("torch.nn.utils") for where in hooks):
        return (
            "has its parameters rewritten before each forward by torch.nn.utils (pruning, spectral_norm); make that "
            "permanent first, or use torch.nn.utils.parametrize"
        )
    known = (
        type(module).forward is CalibratedNorm.forward
        if isinstance(module, CalibratedNorm)
        else (has_act(module) or children.accepts(module))
    )
    if "forward" not in module.__dict__ and known:
        return None
    return f"is a {kind}, whose own forward computes something that is not known; leave it out with exclude="


def held_for_quantization(entry: Found) -> str | None:
    """Return how torch's quantization holds a BatchNorm already, or None: it would go on asking the layer for it."""
    holder = next(
        (type(parent) for parent, _ in entry.places if type(parent).__module__.startswith("torch.ao.nn.")), None
    )
    if holder is not None:
        return f"is part of a {holder.__module__}.{holder.__qualname__}: it is fused or {_PREPARED}"
    return f"has an observer: it is {_PREPARED}" if "activation_post_process" in entry.module._modules else None


def batchnorm_of(layer: Any) -> Any:
    """Return what holds gamma, beta and the statistics: a calibrated layer's child, or the BatchNorm itself."""
    return layer.bn if isinstance(layer, CalibratedNorm) else layer


def parts_of(batchnorm: Any) -> list[Any]:
    """Return the modules that hold gamma and beta: the BatchNorm, and the further parts of a split one."""
    return [batchnorm, *batchnorm.aux_bn] if children.is_split(batchnorm) else [batchnorm]


def num_features(layer: nn.Module) -> int:
    """Return C."""
    return children.num_features(batchnorm_of(layer))


def like(module: nn.Module) -> Tensor | None:
    """Return a tensor of the device and dtype that the module computes with; None where it holds none."""
    held = (*module.parameters(), *module.buffers())
    return next((tensor for tensor in held if tensor.is_floating_point()), None)


def steady_noise(layer: CalibratedNorm) -> tuple[float, float]:
    """Return the noise (N_a, N_b) that is on in evaluation too; (1, 0) is none."""
    return layer.noise if layer.noise is not None and layer.noise_in == "always" else (1.0, 0.0)
