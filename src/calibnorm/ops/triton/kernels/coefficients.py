"""The coefficient step of BN, IEBN and RBN, and its vector-Jacobian product: one program a block of channels.

The formulas are those of calibnorm/methods, which the tests compare with. With M the mean that enters the batch,

    M = m | (1 + w) m | m + w sqrt(v)          E = mean_n M, var = mean_n v + mean_n (M - E)^2, or given
    a = N_a / sqrt(var + eps)                  b = (M - E) a + N_b
    k = b | sqrt(v) |a| | m                    g = logistic(gate_weight * k + gate_bias)
    scale = gamma * g_gamma * a                shift = gamma * g_gamma * b + beta * g_beta

where g_gamma and g_beta are g or 1. Everything is float64. CENTER and GATE count the alternatives above (0 is none for
GATE). eps and the noise are constants of a kernel, because Triton hands floats over in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def channel(ptr, c, valid, OTHERWISE: tl.constexpr, BC: tl.constexpr):
    """A number of every channel, (1, BC), or the constant where there is none."""
    if ptr is None:
        found = tl.full([1, BC], OTHERWISE, tl.float64)
    else:
        found = tl.load(ptr + c, mask=valid, other=0.0).to(tl.float64)[None, :]
    return found


@triton.jit
def root(v):
    return tl.sqrt(v)


@triton.jit
def entering(m, v, center_weight, CENTER: tl.constexpr):
    """M, the mean that enters the batch."""
    if CENTER == 1:
        found = (1.0 + center_weight) * m
    elif CENTER == 2:
        found = m + center_weight * root(v)
    else:
        found = m
    return found


@triton.jit
def batch(m, v, N, C, c, valid, center_weight, CENTER: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr):
    """Mean and biased variance over the instances, (1, BC); the variance is around the mean, in a second loop."""
    instances = tl.zeros([1, BC], tl.float64) + N
    sums = tl.zeros([BN, BC], tl.float64)
    n = tl.arange(0, BN)
    for _ in range(0, N, BN):
        here = (n < N)[:, None] & valid[None, :]
        at = n[:, None] * C + c[None, :]
        m_n = tl.load(m + at, mask=here, other=0.0)
        v_n = tl.load(v + at, mask=here, other=0.0)
        sums += entering(m_n, v_n, center_weight, CENTER)  # 0 where there is no instance
        n += BN
    mean = tl.sum(sums, 0)[None, :] / instances
    squares = tl.zeros([BN, BC], tl.float64)
    n = tl.arange(0, BN)
    for _ in range(0, N, BN):
        here = (n < N)[:, None] & valid[None, :]
        at = n[:, None] * C + c[None, :]
        m_n = tl.load(m + at, mask=here, other=0.0)
        v_n = tl.load(v + at, mask=here, other=0.0)
        distance = entering(m_n, v_n, center_weight, CENTER) - mean
        squares += tl.where(here, v_n + distance * distance, 0.0)
        n += BN
    return mean, tl.sum(squares, 0)[None, :] / instances


@triton.jit
def inverse_std(var, EPS: tl.constexpr, BC: tl.constexpr):
    # 1/sqrt(inf) is 0 and would hide an overflow; 0 * inf is NaN, which is honest.
    return 1.0 / tl.sqrt(var + tl.full([1, BC], EPS, tl.float64)) + 0.0 * var


@triton.jit
def gated(
    m, v, mean, a, noise_b, center_weight, gate_weight, gate_bias, CENTER: tl.constexpr, GATE: tl.constexpr
):
    """M - E, b, k and g of some instances."""
    centred = entering(m, v, center_weight, CENTER) - mean
    b = centred * a + noise_b
    k = b
    if GATE == 2:
        k = root(v) * tl.abs(a)
    elif GATE == 3:
        k = m
    g = k
    if GATE != 0:
        g = 1.0 / (1.0 + tl.exp(-(gate_weight * k + gate_bias)))
    return centred, b, k, g


@triton.jit
def forward(
    m, v, mean, var, weight, bias, center_weight, gate_weight, gate_bias, scale, shift, N, C,
    FIXED: tl.constexpr, EPS: tl.constexpr, NOISE_A: tl.constexpr, NOISE_B: tl.constexpr,
    CENTER: tl.constexpr, GATE: tl.constexpr, ON_GAMMA: tl.constexpr, ON_BETA: tl.constexpr,
    BN: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Scale and shift, (N, C); mean and var are read where FIXED, else written."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    valid = c < C
    w_c = channel(center_weight, c, valid, 0.0, BC)
    if FIXED:
        centre = channel(mean, c, valid, 0.0, BC)
        spread = channel(var, c, valid, 1.0, BC)
    else:
        centre, spread = batch(m, v, N, C, c, valid, w_c, CENTER, BN, BC)
        tl.store(mean + c[None, :], centre, mask=valid[None, :])
        tl.store(var + c[None, :], spread, mask=valid[None, :])
    a = inverse_std(spread, EPS, BC) * tl.full([1, BC], NOISE_A, tl.float64)
    noise_b = tl.full([1, BC], NOISE_B, tl.float64)
    gamma = channel(weight, c, valid, 1.0, BC)
    beta = channel(bias, c, valid, 0.0, BC)
    w_g = channel(gate_weight, c, valid, 0.0, BC)
    b_g = channel(gate_bias, c, valid, 0.0, BC)
    n = tl.arange(0, BN)
    for _ in range(0, N, BN):
        here = (n < N)[:, None] & valid[None, :]
        at = n[:, None] * C + c[None, :]
        m_n = tl.load(m + at, mask=here, other=0.0)
        v_n = tl.load(v + at, mask=here, other=0.0)
        _, b, _, g = gated(m_n, v_n, centre, a, noise_b, w_c, w_g, b_g, CENTER, GATE)
        gamma_n = gamma * g if ON_GAMMA else gamma + 0.0 * b
        beta_n = beta * g if ON_BETA else beta + 0.0 * b
        tl.store(scale + at, gamma_n * a, mask=here)
        tl.store(shift + at, gamma_n * b + beta_n, mask=here)
        n += BN


@triton.jit
def pulled(
    m, v, d_shift, d_scale, mean, a, noise_b, gamma, beta, w_c, w_g, b_g,
    CENTER: tl.constexpr, GATE: tl.constexpr, ON_GAMMA: tl.constexpr, ON_BETA: tl.constexpr,
):  # fmt: skip
    """What one instance sends to the channel's numbers, and to its own m and v without going through the batch."""
    centred, b, k, g = gated(m, v, mean, a, noise_b, w_c, w_g, b_g, CENTER, GATE)
    over_gate = d_scale * a + d_shift * b  # d gamma but for the gate
    g_gamma = g if ON_GAMMA else 1.0 + 0.0 * b
    d_gamma = g_gamma * over_gate
    d_beta = g * d_shift if ON_BETA else d_shift
    d_b = gamma * g_gamma * d_shift
    d_a = gamma * g_gamma * d_scale
    dm = 0.0 * b
    dv = 0.0 * b
    dz = 0.0 * b
    if GATE != 0:
        d_gate = 0.0 * b
        if ON_GAMMA:
            d_gate += gamma * over_gate
        if ON_BETA:
            d_gate += beta * d_shift
        dz = d_gate * g * (1.0 - g)
        dk = dz * w_g
        if GATE == 1:
            d_b += dk
        elif GATE == 2:
            sd = root(v)
            d_a += dk * tl.where(a < 0.0, -sd, sd)
            dv = tl.where(v == 0.0, 0.0, dk * tl.abs(a) * 0.5 / sd)
        else:
            dm = dk
    d_a += d_b * centred
    dm += d_b * a  # dM: the gate takes m itself only where M is m
    return d_gamma, d_beta, dz * k, dz, d_a, d_b * a, dm, dv, gamma * g_gamma * a, centred


@triton.jit
def backward(
    m, v, mean, var, weight, bias, center_weight, gate_weight, gate_bias, sum_dy, sum_dy_centred,
    scale, slope, offset, d_weight, d_bias, d_center_weight, d_gate_weight, d_gate_bias, N, C, S,
    FIXED: tl.constexpr, EPS: tl.constexpr, NOISE_A: tl.constexpr, NOISE_B: tl.constexpr,
    CENTER: tl.constexpr, GATE: tl.constexpr, ON_GAMMA: tl.constexpr, ON_BETA: tl.constexpr,
    BN: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Scale, ``2 dv / S``, ``(dm - scale S1) / S``, and the gradients that have a pointer."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    valid = c < C
    zero = tl.zeros([1, BC], tl.float64)
    w_c = channel(center_weight, c, valid, 0.0, BC)
    if FIXED:
        centre = channel(mean, c, valid, 0.0, BC)
        spread = channel(var, c, valid, 1.0, BC)
    else:
        centre, spread = batch(m, v, N, C, c, valid, w_c, CENTER, BN, BC)
    inverse = inverse_std(spread, EPS, BC)
    noise_a = tl.full([1, BC], NOISE_A, tl.float64)
    noise_b = tl.full([1, BC], NOISE_B, tl.float64)
    a = inverse * noise_a
    gamma = channel(weight, c, valid, 1.0, BC)
    beta = channel(bias, c, valid, 0.0, BC)
    w_g = channel(gate_weight, c, valid, 0.0, BC)
    b_g = channel(gate_bias, c, valid, 0.0, BC)
    to_gamma = tl.zeros([BN, BC], tl.float64)
    to_beta = tl.zeros([BN, BC], tl.float64)
    to_w_g = tl.zeros([BN, BC], tl.float64)
    to_b_g = tl.zeros([BN, BC], tl.float64)
    to_a = tl.zeros([BN, BC], tl.float64)
    to_mean = tl.zeros([BN, BC], tl.float64)
    n = tl.arange(0, BN)
    for _ in range(0, N, BN):
        here = (n < N)[:, None] & valid[None, :]
        at = n[:, None] * C + c[None, :]
        m_n = tl.load(m + at, mask=here, other=0.0)
        v_n = tl.load(v + at, mask=here, other=0.0)
        d_shift = tl.load(sum_dy + at, mask=here, other=0.0)
        d_scale = tl.load(sum_dy_centred + at, mask=here, other=0.0)
        d_gamma, d_beta, d_w_g, d_b_g, d_a, d_mean, _, _, _, _ = pulled(
            m_n, v_n, d_shift, d_scale, centre, a, noise_b, gamma, beta, w_c, w_g, b_g, CENTER, GATE, ON_GAMMA, ON_BETA
        )
        # Where there is no instance, all of these are 0: dy is.
        to_gamma += d_gamma
        to_beta += d_beta
        to_w_g += d_w_g
        to_b_g += d_b_g
        to_a += d_a
        to_mean -= d_mean
        n += BN
    d_var = tl.sum(to_a, 0)[None, :] * noise_a * -0.5 * inverse * inverse * inverse
    through_mean = tl.sum(to_mean, 0)[None, :]
    instances = zero + N
    pixels = zero + S
    to_w_c = tl.zeros([BN, BC], tl.float64)
    n = tl.arange(0, BN)
    for _ in range(0, N, BN):
        here = (n < N)[:, None] & valid[None, :]
        at = n[:, None] * C + c[None, :]
        m_n = tl.load(m + at, mask=here, other=0.0)
        v_n = tl.load(v + at, mask=here, other=0.0)
        d_shift = tl.load(sum_dy + at, mask=here, other=0.0)
        d_scale = tl.load(sum_dy_centred + at, mask=here, other=0.0)
        _, _, _, _, _, _, dm, dv, scale_n, centred = pulled(
            m_n, v_n, d_shift, d_scale, centre, a, noise_b, gamma, beta, w_c, w_g, b_g, CENTER, GATE, ON_GAMMA, ON_BETA
        )
        if not FIXED:
            dm += (through_mean + 2.0 * d_var * centred) / instances
            dv += d_var / instances
        if CENTER == 1:
            to_w_c += tl.where(here, dm * m_n, 0.0)
            dm *= 1.0 + w_c
        elif CENTER == 2:
            sd = root(v_n)
            to_w_c += tl.where(here, dm * sd, 0.0)
            dv += tl.where(v_n == 0.0, 0.0, dm * w_c * 0.5 / sd)
        tl.store(scale + at, scale_n, mask=here)
        tl.store(slope + at, 2.0 * dv / pixels, mask=here)
        tl.store(offset + at, (dm - scale_n * d_shift) / pixels, mask=here)
        n += BN
    kept = valid[None, :]
    if d_weight is not None:
        tl.store(d_weight + c[None, :], tl.sum(to_gamma, 0)[None, :].to(d_weight.dtype.element_ty), mask=kept)
    if d_bias is not None:
        tl.store(d_bias + c[None, :], tl.sum(to_beta, 0)[None, :].to(d_bias.dtype.element_ty), mask=kept)
    if d_center_weight is not None:
        d_w_c = tl.sum(to_w_c, 0)[None, :]
        tl.store(d_center_weight + c[None, :], d_w_c.to(d_center_weight.dtype.element_ty), mask=kept)
    if d_gate_weight is not None:
        tl.store(d_gate_weight + c[None, :], tl.sum(to_w_g, 0)[None, :].to(d_gate_weight.dtype.element_ty), mask=kept)
    if d_gate_bias is not None:
        tl.store(d_gate_bias + c[None, :], tl.sum(to_b_g, 0)[None, :].to(d_gate_bias.dtype.element_ty), mask=kept)
