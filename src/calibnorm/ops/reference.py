"""The four passes over pixels in plain torch: the specification that every backend is checked against.

x is (N, C, *spatial) with S spatial positions (S = 1 for (N, C)); m, v, scale, shift and the sums are (N, C) or
broadcast to it. Pixels are computed in the accumulation dtype, float32 for half types, else x's own. The (N, C)
numbers may be wider, and are in float64 by default: in float32 the mean 1e6 of a plane is rounded by up to 0.03,
which alone put 0.012 on a variance of 1. :func:`moments` and :func:`affine` are differentiable to any order, and so
serve every transformation of torch as well.
"""

from __future__ import annotations

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that sums over pixels of ``dtype`` are kept in."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def coefficient_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of the (N, C) numbers: float64 where the device has it."""
    return accumulation_dtype(x.dtype) if x.device.type == "mps" else torch.float64


def moments(x: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance over the spatial positions, each (N, C), in ``dtype``."""
    dtype = dtype or coefficient_dtype(x)
    x = x.to(accumulation_dtype(x.dtype))
    if x.ndim == 2:
        return x.to(dtype), torch.zeros_like(x, dtype=dtype)
    pixels = _pixels(x)
    near = x.mean(pixels, keepdim=True)
    # The mean of what is left mends the rounding of a large mean. It is 0 but for rounding, and so is its slope.
    rest = (x - near).mean(pixels).detach().to(dtype)
    v = (x - near).square().mean(pixels).to(dtype) - rest.square()
    return near.flatten(1).to(dtype) + rest, v


def affine(x: Tensor, m: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return ``scale * (x - m) + shift`` in x's dtype."""
    centre, rest = _split(m, x)
    x_wide, scale, shift = x.to(centre.dtype), _over_pixels(scale, x), _over_pixels(shift - scale * rest, x)
    return torch.addcmul(shift, x_wide - _over_pixels(centre, x), scale).to(x.dtype)


def gradient_sums(dy: Tensor, x: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    """Return S1, the sum of dy, and S2, the sum of ``dy * (x - m)``, over the spatial positions, in m's dtype."""
    centre, rest = _split(m, x)
    dy = dy.to(centre.dtype)
    product = dy * (x.to(centre.dtype) - _over_pixels(centre, x))
    if x.ndim > 2:
        dy, product = dy.sum(_pixels(x)), product.sum(_pixels(x))
    return dy.to(m.dtype), product.to(m.dtype) - rest * dy


def gradient_apply(dy: Tensor, x: Tensor, m: Tensor, scale: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """Return ``scale * dy + slope * (x - m) + offset`` in x's dtype."""
    centre, rest = _split(m, x)
    offset = _over_pixels(offset - slope * rest, x)
    centred = torch.addcmul(offset, x.to(centre.dtype) - _over_pixels(centre, x), _over_pixels(slope, x))
    return torch.addcmul(centred, dy.to(centre.dtype), _over_pixels(scale, x)).to(x.dtype)


def _pixels(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


def _split(m: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return m as pixels can subtract it, in the accumulation dtype, and what that rounding left."""
    centre = m.to(accumulation_dtype(x.dtype))
    return centre, m - centre


def _over_pixels(t: Tensor, x: Tensor) -> Tensor:
    """View (N, C) or (C,) so that it broadcasts over x's pixels, in the accumulation dtype."""
    return t.reshape(t.shape + (1,) * (x.ndim - 2)).to(accumulation_dtype(x.dtype))
