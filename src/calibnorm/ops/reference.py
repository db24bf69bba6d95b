"""The four passes over pixels in plain torch: the specification that every backend is checked against.

x is (N, C, *spatial) with S spatial positions (S = 1 for (N, C)); m, v, scale, shift and the sums are (N, C) or
broadcast to it, in the accumulation dtype: float32 for half types, else x's own. :func:`moments` and :func:`affine`
are differentiable to any order, and so serve every transformation of torch as well.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rectified(NamedTuple):
    """What the mask of a fused ReLU is computed from: the output's sign, after rounding to its dtype."""

    scale: Tensor
    shift: Tensor
    residual: Tensor | None


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that sums over pixels of ``dtype`` are kept in."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance over the spatial positions, each (N, C)."""
    x = x.to(accumulation_dtype(x.dtype))
    if x.ndim == 2:
        return x, torch.zeros_like(x)
    pixels = _pixels(x)
    near = x.detach().mean(pixels, keepdim=True)
    # A mean of 1e6 is rounded to 0.06: the mean of what is left mends it, and the variance around it. `near` is a
    # constant to the gradient, which is the same for every one. A mean of squares takes a third of torch.var's time.
    rest = x - near
    d = rest.mean(pixels)
    return near.flatten(1) + d, (rest.square().mean(pixels) - d.square()).clamp_min(0.0)


def affine(
    x: Tensor, m: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None = None, relu: bool = False
) -> Tensor:
    """Return ``scale * (x - m) + shift`` (plus the residual, then rectified, where asked) in x's dtype."""
    m, scale, shift = (_over_pixels(t, x) for t in (m, scale, shift))
    y = torch.addcmul(shift, x.to(m.dtype) - m, scale)
    if residual is not None:
        y = y + residual.to(m.dtype)
    y = y.to(x.dtype)
    return torch.relu(y) if relu else y


def gradient_sums(
    dy: Tensor, x: Tensor, m: Tensor, relu: Rectified | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return S1, the sum of dy, and S2, the sum of ``dy * (x - m)``, over the spatial positions.

    With ``relu`` dy is masked first. Where that has a residual, the masked dy, its gradient, is the third result.
    """
    masked = None
    if relu is not None:
        dy = _masked(dy, x, m, relu)
        masked = None if relu.residual is None else dy
    dy = dy.to(m.dtype)
    product = (x.to(m.dtype) - _over_pixels(m, x)).mul_(dy)
    if x.ndim == 2:
        return dy, product, masked
    pixels = _pixels(x)
    return dy.sum(pixels), product.sum(pixels), masked


def gradient_apply(
    dy: Tensor, x: Tensor, m: Tensor, scale: Tensor, slope: Tensor, offset: Tensor, shift: Tensor | None = None
) -> Tensor:
    """Return ``scale * dy + slope * (x - m) + offset`` in x's dtype; with ``shift``, dy is masked by a ReLU first."""
    if shift is not None:
        dy = _masked(dy, x, m, Rectified(scale, shift, None))
    m, scale, slope, offset = (_over_pixels(t, x) for t in (m, scale, slope, offset))
    dx = (x.to(m.dtype) - m).mul_(slope).add_(offset)
    return dx.addcmul_(dy.to(m.dtype), scale).to(x.dtype)


def _masked(dy: Tensor, x: Tensor, m: Tensor, relu: Rectified) -> Tensor:
    """Return dy where the output is positive or NaN, else 0."""
    return dy.masked_fill(affine(x, m, *relu) <= 0, 0.0)


def _pixels(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


def _over_pixels(t: Tensor, x: Tensor) -> Tensor:
    """View (N, C) or (C,) so that it broadcasts over x's pixels."""
    return t.reshape(t.shape + (1,) * (x.ndim - 2))
