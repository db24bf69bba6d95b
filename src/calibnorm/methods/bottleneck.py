"""Two fully connected layers with a ReLU between them, over the channels of an instance: SE's, and IEBN's fc."""

from __future__ import annotations

import torch
from torch import Tensor

from calibnorm.methods.base import Parameter, Params


def check_reduction(reduction: object) -> None:
    """Refuse a reduction that is no positive integer."""
    if isinstance(reduction, bool) or not isinstance(reduction, int) or reduction < 1:
        raise ValueError(f"reduction={reduction!r} must be an integer, at least 1")


def bottleneck_parameters(num_features: int, reduction: int, decays: bool = False) -> dict[str, Parameter]:
    """Return W1, b1, W2 and b2 with C / reduction hidden units, which start as in ``nn.Linear``.

    ``decays`` is about the matrices.
    """
    hidden = max(num_features // reduction, 1)
    return {
        "fc1_weight": Parameter((hidden, num_features), fan_in=num_features, decays=decays),
        "fc1_bias": Parameter((hidden,), fan_in=num_features),
        "fc2_weight": Parameter((num_features, hidden), fan_in=hidden, decays=decays),
        "fc2_bias": Parameter((num_features,), fan_in=hidden),
    }


def bottleneck(z_NC: Tensor, p: Params) -> Tensor:
    """Return ``W2 relu(W1 z + b1) + b2``, (N, C)."""
    hidden = torch.relu(z_NC @ p["fc1_weight"].t() + p["fc1_bias"])
    return hidden @ p["fc2_weight"].t() + p["fc2_bias"]
