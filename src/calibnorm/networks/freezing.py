"""Statistics that stay while a network trains."""

from __future__ import annotations

import warnings

from torch import nn

from calibnorm import _checks
from calibnorm.networks.finding import find_norms, is_frozen
from calibnorm.nn import CalibratedNorm


def freeze_stats(model: nn.Module, frozen: bool = True, *, center: bool = False) -> nn.Module:
    """Let calibrated layers normalize with their running statistics in training too, while the gates learn.

    Use it to fine-tune with batches too small for statistics. It lasts: ``model.train()`` does not undo it, but
    ``freeze_stats(model, False)`` does. RBN's centering weight w_m stops learning as well, because the running mean
    belongs to its present value; its ``requires_grad`` is remembered, and comes back when the statistics move again.
    Make the optimizer after that, since ``cn.param_groups`` leaves out what does not learn.

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
    found = find_norms(model)
    layers = [(entry.title, entry.module) for entry in found if isinstance(entry.module, CalibratedNorm)]
    for title, layer in layers:
        if frozen and getattr(layer.bn, "running_mean", None) is None:
            raise ValueError(f"{title} keeps no running statistics (track_running_stats=False) to freeze")
    for _, layer in layers:
        if frozen and not center:
            hold_center(layer)
        elif frozen or (layer.frozen and not is_frozen(layer.bn)):
            _release_center(layer)
        layer.frozen = frozen
    calibrated = {id(layer) for _, layer in layers}
    plain = [e.title for e in found if id(e.module) not in calibrated and not is_frozen(e.module)]
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
