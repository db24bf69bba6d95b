"""The mark that ``cn.fuse`` leaves on a layer whose ``act="relu"`` it set, for whatever changes the layer later."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn


class Fused(NamedTuple):
    """How a layer came by its ReLU."""

    pattern: str
    """``"norm+relu"`` or ``"norm+add+relu"``."""
    plain: bool
    """The layer stands for a plain BatchNorm, which ``cn.unfuse`` gives back."""
    own_act: bool
    """The ReLU was a module of the layer itself, as in timm's BatchNormAct2d."""


def save_as_batchnorm(layer: nn.Module) -> None:
    """Let a layer's state dict have the keys of the BatchNorm that it owns, so that fusion changes no checkpoint."""
    if _flatten not in layer._state_dict_hooks.values():
        layer.register_state_dict_post_hook(_flatten)  # type: ignore[no-untyped-call]


def _flatten(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    own = f"{prefix}bn."
    for key in [key for key in state if key.startswith(own)]:
        state[prefix + key.removeprefix(own)] = state.pop(key)
