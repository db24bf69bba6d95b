"""The name of a layer in its network, for messages: a layer does not know where it stands."""

from __future__ import annotations

import sys
from types import FrameType

import torch
from torch import nn

from calibnorm.nn.batchnorm_owner import BatchNormOwner


def in_network(where: str) -> str:
    """Return ``where`` with the dotted name of the layer whose forward runs, in the outermost module that runs."""
    if torch.compiler.is_compiling():
        return where
    layer: nn.Module | None = None
    network: nn.Module | None = None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module):
            layer = module if layer is None and isinstance(module, BatchNormOwner) else layer
            network = module
        frame = frame.f_back
    if layer is None or network is None:
        return where
    name = next((name for name, module in network.named_modules() if module is layer), "")
    return f"{where} ({name})" if name else where
