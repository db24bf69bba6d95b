"""Layers as training leaves them."""

from __future__ import annotations

import torch

from cases import generator


def trained(layer):
    """A layer with tensors and statistics of its own, in eval mode."""
    draw = generator(5)
    with torch.no_grad():
        for tensor in layer.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=draw, dtype=torch.float64))
        for name, buffer in layer.named_buffers():
            if buffer.is_floating_point() and "mean" in name:
                buffer.copy_(torch.randn(buffer.shape, generator=draw))
            elif buffer.is_floating_point():
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=draw))
    return layer.eval()
