"""The whole layer in one launch, where the statistics are given and a plane fits on chip: one read, one write.

The moments are those of :mod:`.pixels` for a plane of one tile, the coefficients those of :mod:`.coefficients`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from calibnorm.ops.triton.kernels.coefficients import channel, gated, inverse_std, reparameterized
from calibnorm.ops.triton.kernels.pixels import extents, locate, output

INTEGERS = ["total", "c_units", "s_units"]


@triton.jit(do_not_specialize=INTEGERS)
def normalize(
    x, m, v, mean, var, weight, bias, center_weight, gate_weight, gate_bias, residual, y, total, c_units, s_units,
    RELU: tl.constexpr, EPS: tl.constexpr, NOISE_A: tl.constexpr, NOISE_B: tl.constexpr,
    CENTER: tl.constexpr, GATE: tl.constexpr, ON_GAMMA: tl.constexpr, ON_BETA: tl.constexpr,
    CW: tl.constexpr, SW: tl.constexpr, ROWS: tl.constexpr, P: tl.constexpr, B: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """``scale * (x - m) + shift`` (+ residual, rectified), and the moments, if they have a place."""
    C, S = extents(c_units, s_units, CW, SW)
    pid = tl.program_id(0).to(tl.int64)
    planes, valid, at, within, _to, end = locate(pid, total, C, S, 1, 1, ROWS, P, B)
    here = valid[:, None] & (tl.arange(0, B) < end)[None, :]
    wide = tl.load(x + at + within, mask=here, other=0.0).to(ACC)
    near = tl.sum(wide, 1) / end.to(ACC)
    left = tl.where(here, wide - near[:, None], 0.0)
    rest = tl.sum(left, 1).to(tl.float64) / end
    spread = tl.sum(left * left, 1).to(tl.float64) / end - rest * rest
    spread = tl.where(spread < 0.0, 0.0, spread)  # not a maximum: NaN stays
    centre = near.to(tl.float64) + rest
    if m is not None:
        tl.store(m + planes, centre, mask=valid)
        tl.store(v + planes, spread, mask=valid)
    c = planes % C
    w_c = channel(center_weight, c, valid, 0.0)
    w_g = channel(gate_weight, c, valid, 0.0)
    b_g = channel(gate_bias, c, valid, 0.0)
    a = inverse_std(channel(var, c, valid, 1.0), EPS) * tl.full(c.shape, NOISE_A, tl.float64)
    _, b, _, g = gated(
        centre, spread, channel(mean, c, valid, 0.0), a, w_c, w_g, b_g, NOISE_B, CENTER, GATE
    )  # fmt: skip
    gamma, beta = channel(weight, c, valid, 1.0), channel(bias, c, valid, 0.0)
    scale, shift = reparameterized(a, b, g, gamma, beta, ON_GAMMA, ON_BETA)
    # As in pixels.affine, to the bit: backward computes the mask of a ReLU from what that computes.
    rounded = centre.to(ACC)
    last = (shift - scale * (centre - rounded.to(tl.float64))).to(ACC)
    out = output(wide, rounded, scale.to(ACC), last, residual, at + within, here, ACC, y.dtype.element_ty)
    if RELU:
        out = tl.where(out <= 0.0, 0.0, out)  # not a maximum: NaN passes
    tl.store(y + at + within, out.to(y.dtype.element_ty), mask=here)
