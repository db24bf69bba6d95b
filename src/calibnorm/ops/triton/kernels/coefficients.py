"""The coefficient step of BN, IEBN and RBN, and its vector-Jacobian product: one program a block of channels.

The formulas are those of calibnorm/methods, which the tests compare with. With M the mean that enters the batch,

    M = m | (1 + w) m | m + w sqrt(v)          E = mean_n M, var = mean_n v + mean_n (M - E)^2, or given
    a = N_a / sqrt(var + eps)                  b = (M - E) a + N_b
    k = b | sqrt(v) |a| | m                    g = logistic(gate_weight * k + gate_bias)
    scale = gamma * g_gamma * a                shift = gamma * g_gamma * b + beta * g_beta

where g_gamma and g_beta are g or 1. CENTER and GATE count the alternatives above (0 is none for GATE). Everything is
float64. eps and the noise are constants of a kernel, because Triton hands floats over in float32.

A tile is (BN instances, BC channels). Parts of planes that were cut are merged on the way, for no launch of its own.
"""

from __future__ import annotations

import triton
import triton.language as tl

INTEGERS = ["N", "C", "S", "chunk", "splits", "momentum", "unbias"]


@triton.jit
def channel(ptr, c, valid, OTHERWISE: tl.constexpr):
    """A number of every channel in float64, or the constant where there is none."""
    otherwise = tl.full(c.shape, OTHERWISE, tl.float64)
    return otherwise if ptr is None else tl.load(ptr + c, mask=valid, other=OTHERWISE).to(tl.float64)


@triton.jit
def numbers(ptr, at, here):
    """A number of every plane in float64, 0 where there is no plane or no such array."""
    return tl.zeros(at.shape, tl.float64) if ptr is None else tl.load(ptr + at, mask=here, other=0.0).to(tl.float64)


@triton.jit
def half_over(sd):
    """The derivative of a square root, which is taken as 0 where the root is 0."""
    zero = sd == 0.0
    return tl.where(zero, 0.0, 0.5 / tl.where(zero, 1.0, sd))


@triton.jit
def entering(m, v, center_weight, CENTER: tl.constexpr):
    """M, the mean that enters the batch."""
    if CENTER == 1:
        found = m + center_weight * m
    elif CENTER == 2:
        found = m + center_weight * tl.sqrt(v)
    else:
        found = m
    return found


@triton.jit
def batch(m, v, N, C, c, valid, center_weight, CENTER: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr):
    """Mean and biased variance over the instances, (1, BC); the variance is around the mean, in a second loop."""
    sums = tl.zeros([BN, BC], tl.float64)
    for first in range(0, N, BN):
        n = first + tl.arange(0, BN).to(tl.int64)[:, None]
        here = (n < N) & valid
        # 0 where there is no instance.
        sums += entering(numbers(m, n * C + c, here), numbers(v, n * C + c, here), center_weight, CENTER)
    mean = tl.sum(sums, 0)[None, :] / N
    squares = tl.zeros([BN, BC], tl.float64)
    for first in range(0, N, BN):
        n = first + tl.arange(0, BN).to(tl.int64)[:, None]
        here = (n < N) & valid
        v_n = numbers(v, n * C + c, here)
        distance = entering(numbers(m, n * C + c, here), v_n, center_weight, CENTER) - mean
        squares += tl.where(here, v_n + distance * distance, 0.0)
    return mean, tl.sum(squares, 0)[None, :] / N


@triton.jit
def inverse_std(var, EPS: tl.constexpr):
    """One over the standard deviation; 1/sqrt(inf) is 0 and would hide an overflow, where 0 * inf is NaN."""
    return 1.0 / tl.sqrt(var + tl.full(var.shape, EPS, tl.float64)) + 0.0 * var


@triton.jit
def gated(
    m, v, mean, a, center_weight, gate_weight, gate_bias,
    NOISE_B: tl.constexpr, CENTER: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """M - E, b, k and g of some planes."""
    centred = entering(m, v, center_weight, CENTER) - mean
    b = centred * a + tl.full(a.shape, NOISE_B, tl.float64)
    k = b
    if GATE == 2:
        k = tl.sqrt(v) * tl.abs(a)
    elif GATE == 3:
        k = m
    g = k
    if GATE != 0:
        z = gate_weight * k + gate_bias
        small = tl.exp(-tl.abs(z))  # never overflows
        g = tl.where(z < 0.0, small, 1.0) / (1.0 + small)
    return centred, b, k, g


@triton.jit
def reparameterized(a, b, g, gamma, beta, ON_GAMMA: tl.constexpr, ON_BETA: tl.constexpr):
    """Scale and shift of some planes."""
    if ON_GAMMA:
        gamma = gamma * g
    if ON_BETA:
        beta = beta * g
    return gamma * a + 0.0 * b, gamma * b + beta


@triton.jit
def merge_moments(
    parts_m, parts_v, m, v, N, C, S, chunk, splits, c, valid, BN: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    """Moments of planes from those of their parts, each of ``chunk`` pixels but for the last, by Chan's formula."""
    total = N.to(tl.int64) * C
    for first in range(0, N, BN):
        n = first + tl.arange(0, BN).to(tl.int64)[:, None]
        here = (n < N) & valid
        mean = tl.zeros([BN, BC], tl.float64)
        squares = tl.zeros([BN, BC], tl.float64)
        counted = S.to(tl.int64) * 0
        at = n * C + c
        for _ in range(0, splits):
            count = tl.minimum(S - counted, chunk)
            distance = numbers(parts_m, at, here) - mean
            share = count.to(tl.float64) / (counted + count).to(tl.float64)
            mean += distance * share
            squares += numbers(parts_v, at, here) * count + distance * distance * (share * counted)
            counted += count
            at += total
        tl.store(m + n * C + c, mean, mask=here)
        tl.store(v + n * C + c, squares / S, mask=here)
    tl.debug_barrier()  # another thread may read what this one wrote


@triton.jit
def merge_sums(parts, whole, N, C, splits, c, valid, BN: tl.constexpr, BC: tl.constexpr):
    """Sums of planes from those of their parts."""
    total = N.to(tl.int64) * C
    for first in range(0, N, BN):
        n = first + tl.arange(0, BN).to(tl.int64)[:, None]
        here = (n < N) & valid
        found = tl.zeros([BN, BC], tl.float64)
        at = n * C + c
        for _ in range(0, splits):
            found += numbers(parts, at, here)
            at += total
        tl.store(whole + n * C + c, found, mask=here)
    tl.debug_barrier()


@triton.jit(do_not_specialize=INTEGERS)
def coefficients(
    parts_m, parts_v, m, v, mean, var, weight, bias, center_weight, gate_weight, gate_bias, scale, shift,
    N, C, S, chunk, splits,
    FIXED: tl.constexpr, EPS: tl.constexpr, NOISE_A: tl.constexpr, NOISE_B: tl.constexpr,
    CENTER: tl.constexpr, GATE: tl.constexpr, ON_GAMMA: tl.constexpr, ON_BETA: tl.constexpr,
    BN: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Scale and shift, (N, C). Mean and var, (C,), are read where FIXED, else written, if they have a place."""
    c = tl.program_id(0).to(tl.int64) * BC + tl.arange(0, BC)[None, :]
    valid = c < C
    if parts_m is not None:
        merge_moments(parts_m, parts_v, m, v, N, C, S, chunk, splits, c, valid, BN, BC)
    w_c = channel(center_weight, c, valid, 0.0)
    if FIXED:
        centre = channel(mean, c, valid, 0.0)
        spread = channel(var, c, valid, 1.0)
    else:
        centre, spread = batch(m, v, N, C, c, valid, w_c, CENTER, BN, BC)
        if mean is not None:
            tl.store(mean + c, centre, mask=valid)
            tl.store(var + c, spread, mask=valid)
    a = inverse_std(spread, EPS) * tl.full([1, BC], NOISE_A, tl.float64)
    gamma = channel(weight, c, valid, 1.0)
    beta = channel(bias, c, valid, 0.0)
    w_g = channel(gate_weight, c, valid, 0.0)
    b_g = channel(gate_bias, c, valid, 0.0)
    for first in range(0, N, BN):
        n = first + tl.arange(0, BN).to(tl.int64)[:, None]
        here = (n < N) & valid
        at = n * C + c
        _, b, _, g = gated(
            numbers(m, at, here), numbers(v, at, here), centre, a, w_c, w_g, b_g, NOISE_B, CENTER, GATE
        )  # fmt: skip
        scale_n, shift_n = reparameterized(a, b, g, gamma, beta, ON_GAMMA, ON_BETA)
        tl.store(scale + at, scale_n, mask=here)
        tl.store(shift + at, shift_n, mask=here)


@triton.jit
def pulled(
    m, v, d_shift, d_scale, mean, a, gamma, beta, w_c, w_g, b_g, NOISE_B: tl.constexpr,
    CENTER: tl.constexpr, GATE: tl.constexpr, ON_GAMMA: tl.constexpr, ON_BETA: tl.constexpr,
):  # fmt: skip
    """What some planes send to the channel's numbers, and to their own m and v without going through the batch.

    Returned: d_gamma, d_beta, d_gate_weight, d_gate_bias, d_a (all uses of a), dM (m's own use by a gate in it), dv,
    scale and M - E.
    """
    centred, b, k, g = gated(m, v, mean, a, w_c, w_g, b_g, NOISE_B, CENTER, GATE)
    d_gamma = d_scale * a + d_shift * b
    d_beta = d_shift
    gated_gamma = gamma
    d_gate = 0.0 * b
    if ON_GAMMA:
        d_gate = gamma * d_gamma
        d_gamma = g * d_gamma
        gated_gamma = gamma * g
    if ON_BETA:
        d_gate += beta * d_shift
        d_beta = g * d_shift
    d_b = gated_gamma * d_shift
    d_a = gated_gamma * d_scale
    dm = 0.0 * b
    dv = 0.0 * b
    dz = 0.0 * b
    if GATE != 0:
        dz = d_gate * (g - g * g)
        dk = dz * w_g
        if GATE == 1:
            d_b += dk
        elif GATE == 2:
            sd = tl.sqrt(v)
            d_a += dk * tl.where(a < 0.0, -sd, sd)
            dv = dk * tl.abs(a) * half_over(sd)
        else:
            dm = dk  # as if through M, which is m where this gate is
    d_a += d_b * centred
    dm += d_b * a
    return d_gamma, d_beta, dz * k, dz, d_a, d_b, dm, dv, gated_gamma * a, centred


@triton.jit
def store(ptr, c, valid, found):
    """A number of every channel, in the dtype of the array."""
    if ptr.dtype.element_ty.primitive_bitwidth == 16:
        found = found.to(tl.float32)  # the interpreter has no way from float64 to bfloat16
    tl.store(ptr + c, found.to(ptr.dtype.element_ty), mask=valid)


@triton.jit
def store_sum(ptr, c, valid, found):
    """The sum over the instances, where it is wanted."""
    if ptr is not None:
        store(ptr, c, valid, tl.sum(found, 0)[None, :])


@triton.jit(do_not_specialize=INTEGERS)
def coefficients_vjp(
    parts_1, parts_2, sum_1, sum_2, m, v, mean, var, weight, bias, center_weight, gate_weight, gate_bias,
    scale, slope, offset, d_weight, d_bias, d_center_weight, d_gate_weight, d_gate_bias, N, C, S, splits,
    FIXED: tl.constexpr, EPS: tl.constexpr, NOISE_A: tl.constexpr, NOISE_B: tl.constexpr,
    CENTER: tl.constexpr, GATE: tl.constexpr, ON_GAMMA: tl.constexpr, ON_BETA: tl.constexpr,
    BN: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Scale, ``2 dv / S``, ``(dm - scale S1) / S``, and the gradients that have a place."""
    c = tl.program_id(0).to(tl.int64) * BC + tl.arange(0, BC)[None, :]
    valid = c < C
    if parts_1 is not None:
        merge_sums(parts_1, sum_1, N, C, splits, c, valid, BN, BC)
        merge_sums(parts_2, sum_2, N, C, splits, c, valid, BN, BC)
    w_c = channel(center_weight, c, valid, 0.0)
    if FIXED:
        centre = channel(mean, c, valid, 0.0)
        spread = channel(var, c, valid, 1.0)
    else:
        centre, spread = batch(m, v, N, C, c, valid, w_c, CENTER, BN, BC)
    inverse = inverse_std(spread, EPS)
    noise_a = tl.full([1, BC], NOISE_A, tl.float64)
    a = inverse * noise_a
    gamma = channel(weight, c, valid, 1.0)
    beta = channel(bias, c, valid, 0.0)
    w_g = channel(gate_weight, c, valid, 0.0)
    b_g = channel(gate_bias, c, valid, 0.0)
    to_gamma = tl.zeros([BN, BC], tl.float64)
    to_beta = tl.zeros([BN, BC], tl.float64)
    to_w_g = tl.zeros([BN, BC], tl.float64)
    to_b_g = tl.zeros([BN, BC], tl.float64)
    to_a = tl.zeros([BN, BC], tl.float64)
    to_b = tl.zeros([BN, BC], tl.float64)
    for first in range(0, N, BN):
        n = first + tl.arange(0, BN).to(tl.int64)[:, None]
        here = (n < N) & valid
        at = n * C + c
        # Where there is no instance both sums are 0, and with them all that is added.
        d_gamma, d_beta, d_w_g, d_b_g, d_a, d_b, _, _, _, _ = pulled(
            numbers(m, at, here), numbers(v, at, here), numbers(sum_1, at, here), numbers(sum_2, at, here),
            centre, a, gamma, beta, w_c, w_g, b_g, NOISE_B, CENTER, GATE, ON_GAMMA, ON_BETA,
        )  # fmt: skip
        to_gamma += d_gamma
        to_beta += d_beta
        to_w_g += d_w_g
        to_b_g += d_b_g
        to_a += d_a
        to_b += d_b
    store_sum(d_weight, c, valid, to_gamma)
    store_sum(d_bias, c, valid, to_beta)
    store_sum(d_gate_weight, c, valid, to_w_g)
    store_sum(d_gate_bias, c, valid, to_b_g)
    if slope is not None or d_center_weight is not None:
        d_var = tl.sum(to_a, 0)[None, :] * noise_a * -0.5 * inverse * inverse * inverse / N
        d_mean = -tl.sum(to_b, 0)[None, :] * a / N
        to_w_c = tl.zeros([BN, BC], tl.float64)
        for first in range(0, N, BN):
            n = first + tl.arange(0, BN).to(tl.int64)[:, None]
            here = (n < N) & valid
            at = n * C + c
            m_n = numbers(m, at, here)
            v_n = numbers(v, at, here)
            d_shift = numbers(sum_1, at, here)
            _, _, _, _, _, _, dm, dv, scale_n, centred = pulled(
                m_n, v_n, d_shift, numbers(sum_2, at, here),
                centre, a, gamma, beta, w_c, w_g, b_g, NOISE_B, CENTER, GATE, ON_GAMMA, ON_BETA,
            )  # fmt: skip
            if not FIXED:
                dm += d_mean + 2.0 * d_var * centred
                dv += d_var
            if CENTER == 1:
                to_w_c += tl.where(here, dm * m_n, 0.0)
                dm += w_c * dm
            elif CENTER == 2:
                sd = tl.sqrt(v_n)
                to_w_c += tl.where(here, dm * sd, 0.0)
                dv += dm * w_c * half_over(sd)
            if slope is not None:
                tl.store(scale + at, scale_n, mask=here)
                tl.store(slope + at, 2.0 * dv / S, mask=here)
                tl.store(offset + at, (dm - scale_n * d_shift) / S, mask=here)
        store_sum(d_center_weight, c, valid, to_w_c)


@triton.jit(do_not_specialize=["momentum", "unbias", "C"])
def update_running(running_mean, running_var, count, mean, var, momentum, unbias, C, BC: tl.constexpr):
    """Move the running statistics, and count the batch where there is a count; two float64 come as their bits."""
    c = tl.program_id(0).to(tl.int64) * BC + tl.arange(0, BC)
    valid = c < C
    share = momentum.to(tl.int64).to(tl.float64, bitcast=True)
    spread = channel(var, c, valid, 0.0) * unbias.to(tl.int64).to(tl.float64, bitcast=True)
    old_mean, old_var = channel(running_mean, c, valid, 0.0), channel(running_var, c, valid, 0.0)
    store(running_mean, c, valid, old_mean + share * (channel(mean, c, valid, 0.0) - old_mean))
    store(running_var, c, valid, old_var + share * (spread - old_var))
    if count is not None:
        tl.store(count, tl.load(count) + 1, mask=tl.program_id(0) == 0)
