"""The parameter groups of an optimizer: gates without weight decay."""

from __future__ import annotations

from typing import Any

from torch import nn

from calibnorm import _checks
from calibnorm.networks.finding import find_layers
from calibnorm.nn import CalibratedNorm


def param_groups(
    model: nn.Module, weight_decay: float, *, decay_gates: bool = False, decay_norm_and_bias: bool = True
) -> list[dict[str, Any]]:
    """Return an optimizer's parameter groups: gates without weight decay, the rest with it.

    Weight decay would pull a gate towards sigmoid(0), which means nothing. The papers' own recipes decay everything:
    ``decay_gates=True``.

    Args:
        model: The network; parameters with requires_grad False are left out.
        weight_decay: For the parameters that decay.
        decay_gates: Let the gates decay too.
        decay_norm_and_bias: Let the other one-dimensional parameters (gamma, beta, biases) decay, as the papers do.

    Returns:
        One or two groups, ``{"params": [...], "weight_decay": ...}``, every trainable parameter once.

    Raises:
        TypeError: The model is no module, or an argument has the wrong type.
        ValueError: ``weight_decay`` is negative.

    >>> import torchvision, calibnorm as cn
    >>> net = cn.convert(torchvision.models.resnet18(), "rbn")
    >>> [(group["weight_decay"], len(group["params"])) for group in cn.param_groups(net, weight_decay=1e-4)]
    [(0.0001, 62), (0.0, 60)]
    """
    layers = [entry.module for entry in find_layers(model)]
    _checks.flag("decay_gates", decay_gates)
    _checks.flag("decay_norm_and_bias", decay_norm_and_bias)
    if _checks.real("weight_decay", weight_decay) < 0:
        raise ValueError(f"weight_decay={weight_decay} must be 0 or more")
    # Not by gates(): a pruned or parametrized gate is computed from a parameter of another name.
    gates: set[int] = set()
    for layer in layers:
        if isinstance(layer, CalibratedNorm):
            decaying = {name for name, s in layer.method.parameters(layer.num_features).items() if s.decays}
            owned = ((name.split("."), p) for name, p in layer.named_parameters())
            gates |= {id(p) for path, p in owned if path[0] not in ("bn", "act", "drop") and not decaying & {*path}}
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": decay} for decay in (weight_decay, 0.0)]
    for parameter in model.parameters():
        if parameter.requires_grad:
            decays = decay_gates if id(parameter) in gates else decay_norm_and_bias or parameter.ndim > 1
            groups[0 if decays else 1]["params"].append(parameter)
    return [group for group in groups if group["params"]]
