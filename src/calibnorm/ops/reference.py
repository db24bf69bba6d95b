"""The four passes over pixels in plain torch: the specification that every backend is checked against.

x is (N, C, *spatial) with S spatial positions (S = 1 for (N, C)); m, v, scale, shift and the sums are (N, C) or
broadcast to it. Pixels are computed in the accumulation dtype, float32 for half types, else x's own. The (N, C)
numbers may be wider, and are in float64 by default: in float32 the mean 1e6 of a plane is rounded by up to 0.03,
which alone put 0.012 on a variance of 1. :func:`moments` and :func:`affine` are differentiable to any order, and so
serve every transformation of torch as well.

Where nobody records or transforms the operations, intermediates are overwritten. On two CPU cores that, and the cheaper
start of :func:`moments`, took an RBN layer to 0.59-0.82 of its time forward and 0.61-0.96 forward and backward (float32
and bfloat16, both layouts, planes of 7x7 to 56x56).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from calibnorm.ops.inputs import exporting, transformed


class Rectified(NamedTuple):
    """What the mask of a fused ReLU is computed from: the output's sign, after rounding to its dtype."""

    scale: Tensor
    shift: Tensor
    residual: Tensor | None


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that sums over pixels of ``dtype`` are kept in."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def coefficient_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of the (N, C) numbers: float64 where the device has it."""
    return accumulation_dtype(x.dtype) if x.device.type == "mps" else torch.float64


def moments(x: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance over the spatial positions, each (N, C), in ``dtype``."""
    dtype = dtype or coefficient_dtype(x)
    if x.ndim == 2:
        return x.to(dtype), torch.zeros_like(x, dtype=dtype)
    pixels = _pixels(x)
    # A value near the mean is subtracted first: the mean of what is left mends its rounding, and the variance around
    # it. The first eighth of the rows has one, and saves a read: the square of what its mean is off is at most eight
    # times the variance, so the difference below loses few bits. `near` is a constant to the gradient, which is the
    # same for every one. All this took 0.11 to 0.31 of torch.var_mean's time.
    near = x.detach()[:, :, : -(-x.shape[2] // 8)].to(accumulation_dtype(x.dtype)).mean(pixels)
    left = _centred(x, near)
    rest = left.mean(pixels)
    squares = left.square_() if _unwatched(x) else left.square()
    rest, square = (t.to(dtype) for t in _stored(rest, squares.mean(pixels)))
    return near.to(dtype) + rest, (square - rest.square()).clamp_min(0.0)


def affine(
    x: Tensor, m: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None = None, relu: bool = False
) -> Tensor:
    """Return ``scale * (x - m) + shift`` (plus the residual, then rectified, where asked) in x's dtype."""
    centre, rest = _split(m, x)
    centre, scale, shift = _stored(centre, scale.to(centre.dtype), (shift - scale * rest).to(centre.dtype))
    centred, scale, shift = _centred(x, centre), _over_pixels(scale, x), _over_pixels(shift, x)
    if _unwatched(x, residual):
        # Two operations in place: addcmul with two broadcast arguments took twice as long on planes of 32x32 and 7x7.
        y = centred.mul_(scale).add_(shift)
        y = (y if residual is None else y.add_(residual)).to(x.dtype)
        return y.relu_() if relu else y
    y = torch.addcmul(shift, centred, scale)
    if residual is not None:
        y = y + residual.to(y.dtype)
    y = y.to(x.dtype)
    return torch.relu(y) if relu else y


def gradient_sums(
    dy: Tensor, x: Tensor, m: Tensor, relu: Rectified | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return S1, the sum of dy, and S2, the sum of ``dy * (x - m)``, over the spatial positions, in m's dtype.

    With ``relu`` dy is masked first. Where that has a residual, the masked dy, its gradient, is the third result.
    """
    masked = None
    if relu is not None:
        dy = _masked(dy, x, m, relu)
        masked = None if relu.residual is None else dy
    centre, rest = _split(m, x)
    dy, centred = dy.to(centre.dtype), _centred(x, centre)
    product = centred.mul_(dy) if _unwatched(dy, x) else dy * centred
    if x.ndim > 2:
        dy, product = dy.sum(_pixels(x)), product.sum(_pixels(x))
    return dy.to(m.dtype), product.to(m.dtype) - rest * dy, masked


def gradient_apply(
    dy: Tensor, x: Tensor, m: Tensor, scale: Tensor, slope: Tensor, offset: Tensor, shift: Tensor | None = None
) -> Tensor:
    """Return ``scale * dy + slope * (x - m) + offset`` in x's dtype; with ``shift``, dy is masked by a ReLU first."""
    if shift is not None:
        dy = _masked(dy, x, m, Rectified(scale, shift, None))
    centre, rest = _split(m, x)
    offset = _over_pixels(offset - slope * rest, x)
    dy, scale, slope, centred = dy.to(centre.dtype), _over_pixels(scale, x), _over_pixels(slope, x), _centred(x, centre)
    if _unwatched(dy, x):
        return centred.mul_(slope).add_(offset).addcmul_(dy, scale).to(x.dtype)
    return torch.addcmul(torch.addcmul(offset, centred, slope), dy, scale).to(x.dtype)


def update_running(
    buffers: tuple[Tensor, ...], mean: Tensor, var: Tensor, momentum: float | Tensor, unbias: float | Tensor
) -> bool:
    """Move a running mean and variance and perhaps a count, in place; return True, because this takes all of them.

    Args:
        buffers: (C,) of any float dtype, twice; then the count of batches, or nothing.
        mean: The batch's mean, (C,).
        var: The batch's biased variance, (C,).
        momentum: Weight of the batch.
        unbias: The factor that makes the batch's variance unbiased.
    """
    # detach rather than no_grad: torch.export cannot save a graph that switches gradients off in its midst.
    for running, found in zip(buffers, (mean.detach(), var.detach() * unbias), strict=False):
        if isinstance(momentum, Tensor):  # which lerp wants in the dtype of the rest
            running.copy_(running.to(mean.dtype).lerp(found, momentum.to(mean.dtype)))
        else:
            running.lerp_(found.to(running.dtype), momentum)
    for count in buffers[2:]:
        count.add_(1)
    return True


def _stored(*numbers: Tensor) -> tuple[Tensor, ...]:
    """Return (N, C) numbers as pixels read them: under torch.compile they, and their gradients, are stored.

    Inductor, which stores what it joins, would compute them anew at every pixel, in float64: a channels_last layer of
    8x64x28x28 took 27 times as long as compiled BatchNorm in evaluation, where it now takes 1.3 times as long.
    """
    if torch.compiler.is_compiling() and not exporting():
        return torch.stack(torch.broadcast_tensors(*numbers)).unbind()  # type: ignore[no-untyped-call]
    return numbers


def _masked(dy: Tensor, x: Tensor, m: Tensor, relu: Rectified) -> Tensor:
    """Return dy where the output is positive or NaN, else 0."""
    return dy.masked_fill(affine(x, m, *relu) <= 0, 0.0)


def _pixels(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


def _unwatched(*tensors: Tensor | None) -> bool:
    """Whether intermediates may be overwritten: no graph is recorded, no compiler, tracer or transformation looks on.

    Batched gradients (is_grads_batched) for one bring a dy with a dimension more than the tensor it would go into.
    """
    return not (torch.is_grad_enabled() or any(transformed(t) for t in tensors if t is not None))


def _centred(x: Tensor, centre: Tensor) -> Tensor:
    """Return x - centre in centre's dtype, as a new tensor."""
    wide, centre = x.to(centre.dtype), _over_pixels(centre, x)
    # A converted x is new already. The difference of a half type and a wide one would convert it once more.
    return wide - centre if wide is x or not _unwatched(x) else wide.sub_(centre)


def _split(m: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return m as pixels can subtract it, in the accumulation dtype, and what that rounding left."""
    centre = m.to(accumulation_dtype(x.dtype))
    return centre, m - centre


def _over_pixels(t: Tensor, x: Tensor) -> Tensor:
    """View (N, C) or (C,) so that it broadcasts over x's pixels, in the accumulation dtype."""
    return t.reshape(t.shape + (1,) * (x.ndim - 2)).to(accumulation_dtype(x.dtype))
