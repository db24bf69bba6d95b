"""The parameter groups of an optimizer: gates without weight decay."""

from __future__ import annotations

from typing import Any

from torch import nn

from calibnorm import _checks
from calibnorm.networks.finding import find_layers
from calibnorm.nn import CalibratedNorm


def param_groups(
    model: nn.Module,
    weight_decay: float,
    *,
    decay_gates: bool = False,
    decay_norm_and_bias: bool = True,
    gate_lr: float | None = None,
) -> list[dict[str, Any]]:
    """Return an optimizer's parameter groups: gates without weight decay, the rest with it.

    Weight decay would pull a gate towards sigmoid(0), which means nothing. The papers' own recipes decay everything:
    ``decay_gates=True``.

    Args:
        model: The network; parameters with requires_grad False are left out.
        weight_decay: For the parameters that decay.
        decay_gates: Let the gates decay too.
        decay_norm_and_bias: Let the other one-dimensional parameters (gamma, beta, biases) decay, as the papers do.
        gate_lr: The learning rate of the gates, such as a hundredth of the optimizer's; None is the optimizer's. With 0
            they stay as they are.

    Returns:
        One to three groups, ``{"params": [...], "weight_decay": ...}``, every trainable parameter once; with
        ``gate_lr``, the gates have a group of their own, which has ``"lr"`` too.

    Raises:
        TypeError: The model is no module, or an argument has the wrong type.
        ValueError: ``weight_decay`` or ``gate_lr`` is negative.

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
    if gate_lr is not None and _checks.real("gate_lr", gate_lr) < 0:
        raise ValueError(f"gate_lr={gate_lr} must be 0 or more, or None for the optimizer's learning rate")
    # Not by gates(): a pruned or parametrized gate is computed from a parameter of another name.
    gates: set[int] = set()
    for layer in layers:
        if isinstance(layer, CalibratedNorm):
            decaying = {name for name, s in layer.method.parameters(layer.num_features).items() if s.decays}
            owned = ((name.split("."), p) for name, p in layer.named_parameters())
            gates |= {id(p) for path, p in owned if path[0] not in ("bn", "act", "drop") and not decaying & {*path}}
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": decay} for decay in (weight_decay, 0.0)]
    own: dict[str, Any] = {"params": [], "weight_decay": weight_decay if decay_gates else 0.0, "lr": gate_lr}
    for parameter in model.parameters():
        if parameter.requires_grad:
            is_gate = id(parameter) in gates
            decays = decay_gates if is_gate else decay_norm_and_bias or parameter.ndim > 1
            group = own if is_gate and gate_lr is not None else groups[0 if decays else 1]
            group["params"].append(parameter)
    groups.append(own)
    return [group for group in groups if group["params"]]
