"""The four passes over pixels in plain torch: the specification that every backend is checked against.

x is (N, C, *spatial) with S spatial positions (S = 1 for (N, C)); m, v, scale, shift and the sums are (N, C) or
broadcast to it, in the accumulation dtype: float32 for half types, else x's own. :func:`moments` and :func:`affine`
are differentiable to any order, and so serve every transformation of torch as well.
"""

from __future__ import annotations

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that sums over pixels of ``dtype`` are kept in."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance over the spatial positions, each (N, C)."""
    x = x.to(accumulation_dtype(x.dtype))
    if x.ndim == 2:
        return x, torch.zeros_like(x)
    pixels = _pixels(x)
    m = x.mean(pixels, keepdim=True)
    # A mean of 1e6 is rounded to 0.06: the mean of what is left mends it. It is 0 but for rounding, so is its slope.
    m = m + (x - m).mean(pixels, keepdim=True).detach()
    v = (x - m).square().mean(pixels)
    return m.flatten(1), v


def affine(x: Tensor, m: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return ``scale * (x - m) + shift`` in x's dtype."""
    m, scale, shift = (_over_pixels(t, x) for t in (m, scale, shift))
    return torch.addcmul(shift, x.to(m.dtype) - m, scale).to(x.dtype)


def gradient_sums(dy: Tensor, x: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    """Return S1, the sum of dy, and S2, the sum of ``dy * (x - m)``, over the spatial positions."""
    dy = dy.to(m.dtype)
    product = dy * (x.to(m.dtype) - _over_pixels(m, x))
    if x.ndim == 2:
        return dy, product
    pixels = _pixels(x)
    return dy.sum(pixels), product.sum(pixels)


def gradient_apply(dy: Tensor, x: Tensor, m: Tensor, scale: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """Return ``scale * dy + slope * (x - m) + offset`` in x's dtype."""
    m, scale, slope, offset = (_over_pixels(t, x) for t in (m, scale, slope, offset))
    centred = torch.addcmul(offset, x.to(m.dtype) - m, slope)
    return torch.addcmul(centred, dy.to(m.dtype), scale).to(x.dtype)


def _pixels(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


def _over_pixels(t: Tensor, x: Tensor) -> Tensor:
    """View (N, C) or (C,) so that it broadcasts over x's pixels."""
    return t.reshape(t.shape + (1,) * (x.ndim - 2))
