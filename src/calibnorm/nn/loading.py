"""Checkpoints of other layers, made to fit: plain BatchNorm's flat keys and the authors' (1, C, 1, 1) tensors."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from calibnorm.methods import Method

CHILD_KEYS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def adapt(state: dict[str, Any], prefix: str, method: Method, num_features: int, compensated: bool) -> None:
    """Rename and reshape, in place, the entries of a state dict that belong to one layer.

    A state without any of the method's tensors is that of a plain BatchNorm. It then brings the initial gates, and,
    where the layer compensates for its initial gate, gamma or beta divided by it: loading before and after conversion
    give the same function.

    Args:
        state: The state dict that torch is about to load.
        prefix: The layer's prefix in it, such as ``"layer1.0.bn1."``.
        method: The layer's method.
        num_features: C.
        compensated: Whether the layer was converted with ``preserve=True``.
    """
    for theirs, ours in method.aliases.items():
        if prefix + theirs in state and prefix + ours not in state:
            state[prefix + ours] = state.pop(prefix + theirs)
    gates = method.parameters(num_features)
    flat = [name for name in CHILD_KEYS if prefix + name in state and f"{prefix}bn.{name}" not in state]
    for name in [*flat, *(g for g, spec in gates.items() if len(spec.shape) == 1)]:
        tensor = state.get(prefix + name)
        if isinstance(tensor, Tensor) and tensor.ndim > 1 and tensor.numel() == num_features:
            state[prefix + name] = tensor.reshape(num_features)
    for name in flat:
        state[f"{prefix}bn.{name}"] = state.pop(prefix + name)
    if flat and not any(prefix + name in state for name in gates):
        for name, spec in gates.items():
            state[prefix + name] = spec.create()
        if compensated:
            gate = method.initial_gate(num_features)
            assert gate is not None
            for name in method.gated:
                key = f"{prefix}bn.{name}"
                if key in state:
                    state[key] = state[key] / gate.to(state[key])
