"""Parameters in groups, as every task's optimizer takes them."""

from __future__ import annotations

from typing import Any

from torch import nn

import calibnorm as cn
from calibnorm.lab import models
from calibnorm.lab.recipes import Recipe


def parameter_groups(recipe: Recipe, network: nn.Module) -> list[dict[str, Any]]:
    """Return a network's parameters with the recipe's weight decay, and its gates with a rate of their own.

    A group's "lr_scale" says how many times the learning rate it has.
    """
    rate = models.parse_norm(recipe.norm).gate_rate
    gate_lr = None if rate == 1 else rate * recipe.learning_rate
    groups = cn.param_groups(network, recipe.weight_decay, decay_gates=recipe.decay_gates, gate_lr=gate_lr)
    for group in groups:
        group["lr_scale"] = rate if "lr" in group else 1.0
    return groups
