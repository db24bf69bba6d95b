"""Back to plain BatchNorm: the gates go, what a constant gate did stays in gamma and beta."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from calibnorm import _checks
from calibnorm.conversion import sources
from calibnorm.networks import finding
from calibnorm.nn import CalibratedNorm, layer_type


def revert(model: nn.Module, *, lossy: bool = False) -> nn.Module:
    """Turn every calibrated layer back into the BatchNorm that it owns, in place, and return the model.

    Exact where a gate is the same for every input (IEBN with g_hat = 0; RBN with w_m = w_v = 0): gamma, or beta, or
    both, take the gate over, and noise that is always on. A layer with ``act="relu"`` becomes a BN1d/2d/3d, because
    plain BatchNorm has no activation. Statistics frozen by ``cn.freeze_stats`` move again.

    Methods that are no BatchNorm with a gate (IN, GN, LN, SN, BCN, ILM, FRN, AN, and one method over another) have no
    exact BatchNorm: with ``lossy=True`` their BatchNorm comes back with gamma, beta and the statistics that it has,
    which those that use no statistics of a batch have never moved. Ghost BN and Batch Renorm are BatchNorm in eval.

    Args:
        model: The network, or a layer.
        lossy: Also revert layers whose gate depends on the input, or whose noise is on in training alone: the gate of
            an average input stays, and the network's function changes.

    Returns:
        The model; where the model itself is a calibrated layer, its BatchNorm.

    Raises:
        TypeError: The model is no module.
        ValueError: A layer has no exact BatchNorm and ``lossy`` is False, its gamma or beta cannot be written, or the
            network is wrapped. Nothing has changed then.

    >>> import torch, torchvision, calibnorm as cn
    >>> net = torchvision.models.resnet18().eval()
    >>> x = torch.randn(2, 3, 32, 32)
    >>> before = net(x)
    >>> net = cn.revert(cn.convert(net, "iebn", preserve=True))
    >>> torch.allclose(net(x), before, rtol=1e-4, atol=1e-5), type(net.bn1).__name__
    (True, 'BatchNorm2d')
    """
    finding.check_unwrapped(model)
    _checks.flag("lossy", lossy)
    shared = sources.tied(model)
    layers = [(e, e.module) for e in finding.find_norms(model) if isinstance(e.module, CalibratedNorm)]
    for entry, layer in layers:
        where = f"{entry.title} ({type(layer).__name__})"
        if why := finding.refusal(layer):
            raise ValueError(f"{entry.title} {why}")
        if not lossy and (why := irreversible(layer)):
            raise ValueError(
                f"{where}: {why}, which plain BatchNorm cannot do; "
                "revert with lossy=True to go back all the same, with the gate of an average input if it has a gate"
            )
        if why := unwritable(layer, shared):
            raise ValueError(f"{where}: {why}")
    # every gate is computed before the first layer is written, so that an error changes nothing
    gates = [average_gates(layer) for _, layer in layers]
    root = model
    for (entry, layer), folded in zip(layers, gates, strict=True):
        plain = to_batchnorm(layer, folded)
        sources.replace(entry, plain)
        root = plain if layer is model else root
    return root


def irreversible(layer: CalibratedNorm) -> str | None:
    """Return why a layer has no exact plain BatchNorm, or None."""
    if constant_gate(layer) is None:
        if any(gate.is_meta for gate in layer.gates().values()):
            return "its gate has no values on the meta device"
        return "its gate depends on the input" if layer.method.gated else f"it computes {layer.method.name!r}"
    if layer.noise is not None and layer.noise_in == "train":
        return "its noise is on in training alone"
    return None


def unwritable(layer: CalibratedNorm, shared: set[int], names: Iterable[str] | None = None) -> str | None:
    """Return why gate and noise cannot be folded into the child, or why drop and act cannot stay; or None.

    Args:
        layer: The layer.
        shared: The ids of the parameters that several modules hold.
        names: Which of gamma and beta are to change; by default those that its gate and noise reach.
    """
    for name in _written(layer) if names is None else names:
        # gamma and beta that are not there are made
        if getattr(layer.bn, name) is not None and (why := sources.locked(layer.bn, name, shared)):
            return f"its BatchNorm takes over what the gate does, and {why}"
    if layer.drop is None and not isinstance(layer.act, nn.Module):
        return None
    if sources.can_carry_act(layer.bn):
        return None
    return f"a {type(layer.bn).__name__} cannot take its drop and act over; put them after the layer"


def to_batchnorm(layer: CalibratedNorm, gates: list[AverageGate]) -> nn.Module:
    """Return the plain layer that takes the place of a calibrated one, which must not be used any more."""
    child = fold_gates(layer, gates)
    if isinstance(layer.act, str):
        whole = layer_type("bn", layer.dims).around(child, act=layer.act)
        whole.drop = layer.drop
        plain: nn.Module = whole
    else:
        plain = sources.put_together(child, layer.drop, layer.act)
    sources.move_hooks(layer, plain)
    return plain


class AverageGate(NamedTuple):
    """The gate of an average input for one part of a child."""

    gate: Tensor
    """(C,) or (1,), in float32 or wider."""
    running_mean: Tensor | None
    """What the running mean becomes; None where it stays."""


@torch.no_grad()
def average_gates(layer: CalibratedNorm) -> list[AverageGate]:
    """Return the gate of every part of the layer's child; nothing is written."""
    return [_gate(layer, part) for part in finding.parts_of(layer.bn)]


@torch.no_grad()
def fold_gates(layer: CalibratedNorm, gates: list[AverageGate]) -> nn.Module:
    """Return the layer's child with the gate and noise folded into it; the layer must not be used any more.

    gamma' = gamma d N_a and beta' = beta d + gamma d N_b, the gate d where the layer has it.
    """
    written = _written(layer)
    n_a, n_b = finding.steady_noise(layer)
    for part, (d, running_mean) in zip(finding.parts_of(layer.bn), gates, strict=True):
        if running_mean is not None:
            part.running_mean.copy_(running_mean)
        if not written:
            continue
        complete(part, written, part.running_mean if part.running_mean is not None else d)
        gamma = part.weight * d if "weight" in layer.method.gated else part.weight
        if "bias" in written:
            part.bias.copy_((part.bias * d if "bias" in layer.method.gated else part.bias) + gamma * n_b)
        if "weight" in written:
            part.weight.copy_(gamma * n_a)
    return layer.bn


def _written(layer: CalibratedNorm) -> set[str]:
    """Return which of gamma and beta change when gate and noise are folded into them."""
    n_a, n_b = finding.steady_noise(layer)
    names = {"weight"} if n_a != 1.0 else set()
    names |= {"bias"} if n_b != 0.0 else set()
    # the gate does nothing to a beta that is not there
    return names | {name for name in layer.method.gated if name == "weight" or layer.bn.bias is not None}


def constant_gate(layer: CalibratedNorm) -> Tensor | None:
    """Return the gate, computed in float32 or wider as the layer does, if it is known and the same for every input."""
    gates = layer.gates()
    if any(gate.is_meta for gate in gates.values()):
        return None
    with torch.device("cpu"):  # a gate on the meta device, if that is the caller's default, would have no values
        return layer.method.constant_gate(
            {name: gate.detach().to(torch.promote_types(gate.dtype, torch.float32)) for name, gate in gates.items()}
        )


def _gate(layer: CalibratedNorm, part: Any) -> AverageGate:
    """Return the gate, or that of an average input with the running mean of the uncalibrated feature."""
    like = finding.like(layer)
    mean: Tensor | None = part.running_mean
    gate, uncalibrated = constant_gate(layer), None
    if gate is None:
        gates = layer.gates()
        # gates and statistics may be of different dtypes (a half network with float32 BatchNorms)
        wide = torch.float32
        for tensor in (*gates.values(), *(() if mean is None else (mean,))):
            wide = torch.promote_types(wide, tensor.dtype)
        device = None if like is None else like.device
        start = torch.zeros(layer.num_features, dtype=wide, device=device) if mean is None else mean.to(wide)
        given = {**gates, **{name: p for name in ("weight", "bias") if (p := getattr(part, name)) is not None}}
        tensors = {name: tensor.detach().to(wide) for name, tensor in given.items()}
        gate, moved = layer.method.mean_gate(tensors, start, finding.steady_noise(layer))
        uncalibrated = None if mean is None else moved
    return AverageGate(gate if like is None else gate.to(like.device), uncalibrated)


def complete(part: Any, written: set[str], like: Tensor) -> None:
    """Give a BatchNorm the gamma and beta that it needs and does not have."""
    if part.weight is None:
        written = {"weight", "bias"}  # torch's BatchNorm has both or, with bias=False, gamma alone
        part.affine = True
    for name, new in (("weight", torch.ones_like), ("bias", torch.zeros_like)):
        if name in written and getattr(part, name) is None:
            setattr(part, name, nn.Parameter(new(like.expand(part.num_features))))
