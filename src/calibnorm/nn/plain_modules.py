"""What may follow a norm without a call of its own: a ReLU, or nothing, that nobody watches."""

from __future__ import annotations

from torch import nn

from calibnorm.nn.hooks import has_hooks


def is_relu(module: object) -> bool:
    """Whether a module is torch's ReLU and nothing more."""
    return type(module) is nn.ReLU and "forward" not in module.__dict__ and not has_hooks(module)


def is_identity(module: object) -> bool:
    """Whether a module is torch's Identity and nothing more."""
    return type(module) is nn.Identity and "forward" not in module.__dict__ and not has_hooks(module)
