"""Checkpoints of other layers, made to fit: plain BatchNorm's flat keys and the authors' (1, C, 1, 1) tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from calibnorm.methods import Method
from calibnorm.nn import child as children

CHILD_KEYS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def adapt(
    state: dict[str, Any], prefix: str, method: Method, child: nn.Module, compensated: bool, extra: Sequence[str] = ()
) -> None:
    """Rename and reshape, in place, the entries of a state dict that belong to one layer.

    A state with every parameter and buffer of the child (``num_batches_tracked`` may be missing) and none of the
    method's tensors is that of a plain BatchNorm. It then brings the initial gates, and, where the layer compensates
    for its initial gate, gamma or beta divided by it: loading before and after conversion give the same function.

    A part of a plain BatchNorm, such as the running statistics alone, is loaded as it is, and torch reports what is
    missing: the gates may be trained, so they stay, and gamma or beta are not divided either, because the gate that
    they would be divided by need not be the one that stays.

    What the child holds further (the parts of a split one) has flat keys too. ``extra`` names the extra statistics that
    the layer keeps.
    """
    for theirs, ours in method.aliases.items():
        if prefix + theirs in state and prefix + ours not in state:
            state[prefix + ours] = state.pop(prefix + theirs)
    channels = children.num_features(child)
    gates = method.parameters(channels)
    within = tuple(f"{prefix}{name}." for name in child._modules)
    candidates = [*(prefix + name for name in CHILD_KEYS), *(key for key in state if key.startswith(within))]
    flat = {k: f"{prefix}bn.{k.removeprefix(prefix)}" for k in candidates if k in state}
    flat = {key: target for key, target in flat.items() if target not in state}
    for key in [*flat, *(prefix + name for name, spec in gates.items() if len(spec.shape) == 1)]:
        tensor = state.get(key)
        if isinstance(tensor, Tensor) and tensor.ndim > 1 and tensor.numel() == channels:
            state[key] = tensor.reshape(channels)
    for key, target in flat.items():
        state[target] = state.pop(key)
    _translate(state, prefix, method, child)
    whole = _names(child) <= {target.removeprefix(f"{prefix}bn.") for target in flat.values()}
    if flat and whole and not any(prefix + name in state for name in gates):
        _start_gates(state, prefix, method, channels, list(flat.values()), compensated)
        for name in extra:
            size = method.extra_statistics(channels)[name]
            state[f"{prefix}{name}_mean"], state[f"{prefix}{name}_var"] = torch.zeros(size), torch.ones(size)


def _translate(state: dict[str, Any], prefix: str, method: Method, child: nn.Module) -> None:
    """Put gates in other terms of the method, such as the paper's raw means, into the layer's: the function stays."""
    own = {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix) and isinstance(t, Tensor)}
    if {"bn.running_mean", "bn.running_var"} <= own.keys():
        eps: Any = child.eps
        for name, tensor in method.translated(own, own["bn.running_mean"], own["bn.running_var"], eps).items():
            state.pop(prefix + name, None)
            if tensor is not None:
                state[prefix + name] = tensor


def _names(child: nn.Module) -> set[str]:
    """Return the names of what a checkpoint of the child must hold; counts came with PyTorch 0.4.1."""
    tensors = [*child.named_parameters(remove_duplicate=False), *child.named_buffers(remove_duplicate=False)]
    return {name for name, _ in tensors if name.rpartition(".")[2] != "num_batches_tracked"}


def _start_gates(
    state: dict[str, Any], prefix: str, method: Method, channels: int, of_child: list[str], compensated: bool
) -> None:
    """Give the state of a plain BatchNorm the gates of a new layer, and the compensation that goes with them."""
    tensors = {key: state[key] for key in of_child if isinstance(state[key], Tensor)}
    like = next((t for t in tensors.values() if t.is_floating_point()), torch.empty(0))
    for name, spec in method.parameters(channels).items():
        state[prefix + name] = spec.create(like.device, like.dtype)
    if not compensated:
        return
    gate = method.initial_gate(channels)
    assert gate is not None
    for key, tensor in tensors.items():
        if key.rpartition(".")[2] in method.gated:
            wide = torch.promote_types(tensor.dtype, torch.float32)
            state[key] = (tensor.to(wide) / gate.to(tensor.device, wide)).to(tensor.dtype)
