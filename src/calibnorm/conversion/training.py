"""What a training script asks of a converted network: parameter groups and frozen statistics."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from calibnorm import _checks
from calibnorm.conversion import sources
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
    sources.check_model(model)
    _checks.flag("decay_gates", decay_gates)
    _checks.flag("decay_norm_and_bias", decay_norm_and_bias)
    if _checks.real("weight_decay", weight_decay) < 0:
        raise ValueError(f"weight_decay={weight_decay} must be 0 or more")
    # Not by gates(): a pruned or parametrized gate is computed from a parameter of another name.
    gates: set[int] = set()
    for layer in model.modules():
        if isinstance(layer, CalibratedNorm):
            decaying = {name for name, s in layer.method.parameters(layer.num_features).items() if s.decays}
            owned = ((name.split("."), p) for name, p in layer.named_parameters())
            gates |= {id(p) for path, p in owned if path[0] not in ("bn", "act", "drop") and not decaying & {*path}}
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        decays = decay_gates if id(parameter) in gates else decay_norm_and_bias or parameter.ndim > 1
        (decayed if decays else free).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def freeze_stats(model: nn.Module, frozen: bool = True, *, center: bool = False) -> nn.Module:
    """Let calibrated layers normalize with their running statistics in training too, while the gates learn.

    For fine-tuning with batches too small for statistics. It lasts: ``model.train()`` does not undo it,
    ``freeze_stats(model, False)`` does. RBN's centering weight w_m stops learning as well, because the running mean
    belongs to its present value; its ``requires_grad`` is remembered, and comes back when the statistics move again.
    Make the optimizer after that, since :func:`param_groups` leaves out what does not learn.

    Args:
        model: The network, changed in place.
        frozen: False lets the statistics move again.
        center: Let RBN's w_m be as you have it, so that it learns although the statistics are frozen; in layers
            around a FrozenBatchNorm2d too, whose statistics never move and whose w_m therefore is held by
            ``cn.convert`` and stays held when ``frozen`` is False.

    Returns:
        The model.

    Raises:
        TypeError: The model is no module, or an argument has the wrong type.
        ValueError: A layer keeps no running statistics; nothing has changed then.

    Warns:
        UserWarning: The network also has plain BatchNorms, which this does not reach.

    >>> import torch, calibnorm as cn
    >>> layer = cn.freeze_stats(cn.RBN2d(4)).train()
    >>> _ = layer(torch.randn(2, 4, 3, 3))
    >>> layer.bn.num_batches_tracked.item(), layer.center_weight.requires_grad, layer.scale_weight.requires_grad
    (0, False, True)
    """
    _checks.flag("frozen", frozen)
    _checks.flag("center", center)
    found = sources.find(model)
    layers = [(entry.title, entry.module) for entry in found if isinstance(entry.module, CalibratedNorm)]
    for title, layer in layers:
        if frozen and getattr(layer.bn, "running_mean", None) is None:
            raise ValueError(f"{title} keeps no running statistics (track_running_stats=False) to freeze")
    for _, layer in layers:
        if frozen and not center:
            hold_center(layer)
        elif frozen or (layer.frozen and not sources.is_frozen(layer.bn)):
            _release_center(layer)
        layer.frozen = frozen
    calibrated = {id(layer) for _, layer in layers}
    plain = [e.title for e in found if id(e.module) not in calibrated and not sources.is_frozen(e.module)]
    if frozen and plain:
        warnings.warn(
            f"{len(plain)} plain BatchNorms are not frozen ({', '.join(plain[:3])}{', ...' * (len(plain) > 3)}); "
            "convert them too, with 'bn' if they are to stay BatchNorm",
            stacklevel=2,
        )
    return model


def hold_center(layer: CalibratedNorm) -> None:
    """Stop RBN's w_m from learning, and remember whether it did: the frozen running mean belongs to it as it is."""
    held: dict[str, bool] = layer.__dict__.setdefault("_center_learned", {})
    for name in layer.method.enters_statistics:
        if name in layer._parameters:
            gate = getattr(layer, name)
            held.setdefault(name, gate.requires_grad)
            gate.requires_grad_(False)


def _release_center(layer: CalibratedNorm) -> None:
    """Undo :func:`hold_center`; a w_m that is not held stays as it is."""
    held: dict[str, bool] = layer.__dict__.pop("_center_learned", {})
    for name, learned in held.items():
        if name in layer._parameters:
            getattr(layer, name).requires_grad_(learned)
