"""Back to plain BatchNorm: the gates go, what a constant gate did stays in gamma and beta."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from calibnorm import _checks
from calibnorm.conversion import sources
from calibnorm.nn import CalibratedNorm, layer_type


def revert(model: nn.Module, *, lossy: bool = False) -> nn.Module:
    """Turn every calibrated layer back into the BatchNorm that it owns, in place, and return the model.

    Exact where a gate is the same for every input (IEBN with g_hat = 0; RBN with w_m = w_v = 0): gamma, or beta, or
    both, take the gate over, and noise that is always on.

    Args:
        model: The network, or a layer.
        lossy: Also revert layers whose gate depends on the input: the gate of an average input stays, and the network's
            function changes.

    Returns:
        The model; where the model itself is a calibrated layer, its BatchNorm.

    Raises:
        ValueError: A gate depends on the input and ``lossy`` is False; nothing has changed then.

    >>> import torch, torchvision, calibnorm as cn
    >>> net = torchvision.models.resnet18().eval()
    >>> x = torch.randn(2, 3, 32, 32)
    >>> before = net(x)
    >>> net = cn.revert(cn.convert(net, "iebn", preserve=True))
    >>> torch.allclose(net(x), before, rtol=1e-4, atol=1e-5), type(net.bn1).__name__
    (True, 'BatchNorm2d')
    """
    _checks.flag("lossy", lossy)
    found = [entry for entry in sources.find(model) if isinstance(entry.module, CalibratedNorm)]
    if not lossy:
        for name, layer, _ in found:
            assert isinstance(layer, CalibratedNorm)
            if why := irreversible(layer):
                raise ValueError(
                    f"{name or 'the model'} ({type(layer).__name__}): {why}, which plain BatchNorm cannot do; "
                    "revert with lossy=True to keep the gate of an average input"
                )
    root = model
    for entry in found:
        assert isinstance(entry.module, CalibratedNorm)
        plain = _to_batchnorm(entry.module)
        sources.replace(entry, plain)
        root = plain if entry.module is model else root
    return root


def irreversible(layer: CalibratedNorm) -> str | None:
    """Return why a layer has no exact plain BatchNorm, or None."""
    if layer.method.constant_gate(layer.gates()) is None:
        return "its gate depends on the input"
    return None


def _to_batchnorm(layer: CalibratedNorm) -> nn.Module:
    child = fold(layer)
    if isinstance(layer.act, str):
        # plain BatchNorm has no activation to keep: the library's own does
        plain: nn.Module = layer_type("bn", layer.dims).around(child, act=layer.act)
    else:
        plain = sources.put_together(child, layer.drop, layer.act)
    sources.move_hooks(layer, plain)
    return plain


@torch.no_grad()
def fold(layer: CalibratedNorm) -> nn.Module:
    """Return the layer's child with the gate and noise folded into it; the layer must not be used any more."""
    n_a, n_b = layer.noise if layer.noise is not None and layer.noise_in == "always" else (1.0, 0.0)
    gate = layer.method.constant_gate(layer.gates())
    for part in sources.tensors(layer.bn):
        mine = gate if gate is not None else _mean_gate(layer, part)
        gamma = mine if "weight" in layer.method.gated else torch.ones(1, device=mine.device)
        beta = mine if "bias" in layer.method.gated else torch.ones(1, device=mine.device)
        _fold(part, gamma, beta, n_a, n_b)
    return layer.bn


def _mean_gate(layer: CalibratedNorm, part: Any) -> Tensor:
    """Return the gate of an average input, after moving the running mean to that of the uncalibrated feature."""
    mean = part.running_mean if part.running_mean is not None else torch.zeros(layer.num_features)
    gate, uncalibrated = layer.method.mean_gate(layer.gates(), mean)
    if part.running_mean is not None:
        part.running_mean.copy_(uncalibrated)
    return gate


def _fold(part: Any, gamma_gate: Tensor, beta_gate: Tensor, n_a: float, n_b: float) -> None:
    """Fold gates and noise into one BatchNorm: gamma' = gamma d N_a, beta' = beta d + gamma d N_b."""
    weight, bias = part.weight, part.bias
    if weight is None and bool((gamma_gate * n_a == 1).all()) and n_b == 0:
        return
    if weight is None:
        weight = part.weight = _new_parameter(part, 1.0)
        part.affine = True
    if bias is None and n_b != 0:
        bias = part.bias = _new_parameter(part, 0.0)
    gated = weight * gamma_gate.to(weight)
    weight.copy_(gated * n_a)
    if bias is not None:
        bias.copy_(bias * beta_gate.to(bias) + gated * n_b)


def _new_parameter(part: Any, value: float) -> nn.Parameter:
    like = part.running_mean if part.running_mean is not None else torch.empty(0)
    return nn.Parameter(torch.full((part.num_features,), value, device=like.device, dtype=like.dtype))
