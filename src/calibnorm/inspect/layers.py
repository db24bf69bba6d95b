"""Which modules of a network are its normalization layers, whoever wrote them."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from calibnorm.networks.finding import check_model, find_layers

Where = Callable[[str, nn.Module], bool] | None
"""A function of a module's name and the module that says whether it is looked at."""

_PLAIN = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def layers_of(model: nn.Module, where: Where = None) -> dict[nn.Module, str]:
    """Return the layers and their names, in the order of definition.

    By default these are BatchNorms and calibrated layers, every other module whose class has "Norm" in its name, and
    what is made of such layers alone, such as half a BatchNorm beside half an InstanceNorm; the network itself is one
    only where it is no more than a layer.

    Raises:
        TypeError: The model is no module.
        ValueError: ``where`` chooses none.
    """
    check_model(model)
    if where is not None:
        chosen = {module: name or "(model)" for name, module in model.named_modules() if where(name, module)}
        if not chosen:
            raise ValueError("where= chooses no module of the network; it is called with each one's name and itself")
        return chosen
    known = {entry.module for entry in find_layers(model)}
    found: dict[nn.Module, str] = {}

    def visit(module: nn.Module, name: str) -> None:
        if module in found or not _is_layer(module, known) or (module is model and not _is_one(module, known)):
            for key, child in module.named_children():
                visit(child, f"{name}.{key}" if name else key)
        else:
            found[module] = name or "(model)"

    visit(model, "")
    return found


def _is_layer(module: nn.Module, known: set[nn.Module]) -> bool:
    if _is_one(module, known):
        return True
    parts = [*module.children()]
    return bool(parts) and not isinstance(module, _PLAIN) and all(_is_layer(part, known) for part in parts)


def _is_one(module: nn.Module, known: set[nn.Module]) -> bool:
    return module in known or ("Norm" in type(module).__name__ and not [*module.children()])
