"""Two fully connected layers with a ReLU between them, over the channels of an instance: SE's, and IEBN's fc."""

from __future__ import annotations

import torch
from torch import Tensor

from calibnorm.methods.base import Parameter, Params


def check_reduction(reduction: object) -> None:
    """Refuse a reduction that is no positive integer."""
    if isinstance(reduction, bool) or not isinstance(reduction, int) or reduction < 1:
        raise ValueError(f"reduction={reduction!r} must be an integer, at least 1")


def bottleneck_parameters(
    num_features: int, reduction: int, decays: bool = False, biases: bool = True
) -> dict[str, Parameter]:
    """Return W1, b1, W2 and b2 with C / reduction hidden units, which start as in ``nn.Linear``; or W1 and W2 alone.

    ``decays`` is about the matrices.
    """
    hidden = max(num_features // reduction, 1)
    parameters = {
        "fc1_weight": Parameter((hidden, num_features), fan_in=num_features, decays=decays),
        "fc1_bias": Parameter((hidden,), fan_in=num_features),
        "fc2_weight": Parameter((num_features, hidden), fan_in=hidden, decays=decays),
        "fc2_bias": Parameter((num_features,), fan_in=hidden),
    }
    return {name: spec for name, spec in parameters.items() if biases or not name.endswith("bias")}


def bottleneck(z_NC: Tensor, p: Params) -> Tensor:
    """Return ``W2 relu(W1 z + b1) + b2``, (N, C), where the biases are among the parameters."""
    hidden = torch.relu(_linear(z_NC, p["fc1_weight"], p.get("fc1_bias")))
    return _linear(hidden, p["fc2_weight"], p.get("fc2_bias"))


def _linear(z_NC: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = z_NC @ weight.t()
    return y if bias is None else y + bias
