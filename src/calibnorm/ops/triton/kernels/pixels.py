"""The four passes over pixels, for both layouts, and the merge of split planes.

A tile is (P planes, B pixels) and reductions run along its second axis. In NCHW the planes of a tile lie behind one
another and pixels are contiguous; where channels are innermost (ROWS) its planes are neighbouring channels of one
instance. Only :func:`locate` knows the difference. A program walks over at most ``tiles`` tiles; a plane that is cut
among ``splits`` programs leaves (splits, N, C) partial results, which a second kernel merges in a fixed order, so that
every result is bitwise repeatable.

C and S come as ``c_units * CW`` and ``s_units * SW``, where CW and SW are powers of two that divide them: the compiler
then knows how far a row is aligned and can load vectors. Offsets are int64 outside of a tile, int32 within.

Products and sums are fused by name (``tl.fma``) and the launches switch automatic fusion off: the mask of a ReLU is
recomputed in backward, and must be the forward's to the bit.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def locate(pid, total, C, S, tiles, splits, ROWS: tl.constexpr, P: tl.constexpr, B: tl.constexpr):
    """Return a program's planes, which of them exist, its first element, the tile's offsets, first pixel and split."""
    lane = tl.arange(0, P)
    pixel = tl.arange(0, B)
    if ROWS:
        blocks = (C + P - 1) // P
        block = pid % blocks
        split = (pid // blocks) % splits
        n = pid // blocks // splits
        channel = block * P + lane
        planes = n * C + channel
        valid = channel < C
        start = split * (tiles * B)
        at = (n * S + start) * C + block * P
        within = pixel[None, :] * C + lane[:, None]
    else:
        split = pid % splits
        unit = pid // splits
        planes = unit * P + lane
        valid = planes < total
        start = split * (tiles * B)
        at = unit * P * S + start
        within = lane[:, None] * S + pixel[None, :]
    return planes, valid, at, within, start, split


@triton.jit
def affine_of(x, m, scale, shift, residual):
    """``scale * (x - m) + shift + residual`` before rounding to the dtype that is stored."""
    y = tl.fma(scale, x - m, shift)
    if residual is not None:
        y = y + residual
    return y


@triton.jit
def number(ptr, planes, valid):
    """One float64 number of each plane."""
    return tl.load(ptr + planes, mask=valid, other=0.0)


@triton.jit
def moments(
    x, m, v, total, c_units, s_units, tiles, splits,
    CW: tl.constexpr, SW: tl.constexpr, ROWS: tl.constexpr, P: tl.constexpr, B: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Mean and biased variance of every plane, or of its part.

    Deviations are from the mean of the first tile, which is the whole plane where that fits (then this is the two-pass
    formula). It holds at least tile/S of the plane, so that its distance from the plane's mean is at most sqrt(S/tile)
    standard deviations: nothing cancels.
    """
    C = c_units * CW
    S = s_units * SW
    pid = tl.program_id(0).to(tl.int64)
    planes, valid, at, within, start, split = locate(pid, total, C, S, tiles, splits, ROWS, P, B)
    s = start + tl.arange(0, B)
    count = tl.minimum(S - start, tiles * B)
    here = valid[:, None] & (s < S)[None, :]
    wide = tl.load(x + at + within, mask=here, other=0.0).to(ACC)
    near = tl.sum(wide, 1) / tl.minimum(count, B).to(ACC)
    left = tl.where(here, wide - near[:, None], 0.0)
    lefts = left
    squares = left * left
    for _ in range(B, count, B):
        at += B * C if ROWS else B
        s += B
        here = valid[:, None] & (s < S)[None, :]
        left = tl.where(here, tl.load(x + at + within, mask=here, other=0.0).to(ACC) - near[:, None], 0.0)
        lefts += left
        squares = tl.fma(left, left, squares)
    pixels = count.to(tl.float64)
    sums = tl.sum(lefts, 1).to(tl.float64)
    rest = sums / pixels
    var = tl.sum(squares, 1).to(tl.float64) / pixels - rest * rest
    tl.store(m + split * total + planes, near.to(tl.float64) + rest, mask=valid)
    tl.store(v + split * total + planes, tl.where(var < 0.0, 0.0, var), mask=valid)


@triton.jit
def merge_moments(parts_m, parts_v, m, v, total, S, chunk, splits, K: tl.constexpr):
    """Moments of planes from those of their parts of ``chunk`` pixels, by Chan's formula."""
    planes = tl.program_id(0).to(tl.int64) * K + tl.arange(0, K)
    valid = planes < total
    mean = tl.zeros([K], tl.float64)
    squares = tl.zeros([K], tl.float64)
    counted = tl.zeros([K], tl.float64)
    left = tl.zeros([K], tl.float64) + S
    at = planes
    for _ in range(splits):
        here = tl.zeros([K], tl.float64) + chunk
        here = tl.where(left < here, left, here)
        m_part = tl.load(parts_m + at, mask=valid, other=0.0)
        v_part = tl.load(parts_v + at, mask=valid, other=0.0)
        distance = m_part - mean
        share = here / (counted + here)
        mean += distance * share
        squares += v_part * here + distance * distance * (counted * share)
        counted += here
        left -= here
        at += total
    tl.store(m + planes, mean, mask=valid)
    tl.store(v + planes, squares / counted, mask=valid)


@triton.jit
def merge_sums(parts_1, parts_2, sum_1, sum_2, total, splits, K: tl.constexpr):
    """Both sums of planes from those of their parts."""
    planes = tl.program_id(0).to(tl.int64) * K + tl.arange(0, K)
    valid = planes < total
    a = tl.zeros([K], tl.float64)
    b = tl.zeros([K], tl.float64)
    at = planes
    for _ in range(splits):
        a += tl.load(parts_1 + at, mask=valid, other=0.0)
        b += tl.load(parts_2 + at, mask=valid, other=0.0)
        at += total
    tl.store(sum_1 + planes, a, mask=valid)
    tl.store(sum_2 + planes, b, mask=valid)


@triton.jit
def affine(
    x, m, scale, shift, residual, y, total, c_units, s_units, tiles, splits,
    RELU: tl.constexpr,
    CW: tl.constexpr, SW: tl.constexpr, ROWS: tl.constexpr, P: tl.constexpr, B: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """``scale * (x - m) + shift`` (+ residual, rectified). Backwards: the tail of x is what the cache still holds."""
    C = c_units * CW
    S = s_units * SW
    pid = (tl.num_programs(0) - 1 - tl.program_id(0)).to(tl.int64)
    planes, valid, at, within, start, split = locate(pid, total, C, S, tiles, splits, ROWS, P, B)
    mean = number(m, planes, valid)
    a = number(scale, planes, valid)
    centre = mean.to(ACC)
    b = (number(shift, planes, valid) - a * (mean - centre.to(tl.float64))).to(ACC)
    a = a.to(ACC)
    s = start + tl.arange(0, B)
    for _ in range(0, tl.minimum(S - start, tiles * B), B):
        here = valid[:, None] & (s < S)[None, :]
        wide = tl.load(x + at + within, mask=here, other=0.0).to(ACC)
        added = None
        if residual is not None:
            added = tl.load(residual + at + within, mask=here, other=0.0).to(ACC)
        out = affine_of(wide, centre[:, None], a[:, None], b[:, None], added).to(y.dtype.element_ty)
        if RELU:
            rounded = out.to(ACC)
            out = tl.where(rounded <= 0.0, 0.0, rounded).to(y.dtype.element_ty)  # NaN passes
        tl.store(y + at + within, out, mask=here)
        at += B * C if ROWS else B
        s += B


@triton.jit
def gradient_sums(
    dy, x, m, scale, shift, residual, masked, sum_1, sum_2, total, c_units, s_units, tiles, splits,
    CW: tl.constexpr, SW: tl.constexpr, ROWS: tl.constexpr, P: tl.constexpr, B: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Sums of dy and of ``dy * (x - m)`` over the pixels; with ``scale``, dy is masked by a ReLU first, and stored."""
    C = c_units * CW
    S = s_units * SW
    pid = tl.program_id(0).to(tl.int64)
    planes, valid, at, within, start, split = locate(pid, total, C, S, tiles, splits, ROWS, P, B)
    mean = number(m, planes, valid)
    centre = mean.to(ACC)
    left = mean - centre.to(tl.float64)
    if scale is not None:
        a = number(scale, planes, valid)
        b = (number(shift, planes, valid) - a * left).to(ACC)
        a = a.to(ACC)
    s = start + tl.arange(0, B)
    ones = tl.zeros([P, B], ACC)
    products = tl.zeros([P, B], ACC)
    for _ in range(0, tl.minimum(S - start, tiles * B), B):
        here = valid[:, None] & (s < S)[None, :]
        wide = tl.load(x + at + within, mask=here, other=0.0).to(ACC)
        d = tl.load(dy + at + within, mask=here, other=0.0).to(ACC)
        if scale is not None:
            added = None
            if residual is not None:
                added = tl.load(residual + at + within, mask=here, other=0.0).to(ACC)
            out = affine_of(wide, centre[:, None], a[:, None], b[:, None], added).to(x.dtype.element_ty)
            d = tl.where(out.to(ACC) <= 0.0, 0.0, d)
            if masked is not None:
                tl.store(masked + at + within, d.to(masked.dtype.element_ty), mask=here)
        ones += d
        # A lane beyond the plane has d = 0, but an infinite mean would make NaN of it; its own plane is lost anyway.
        products = tl.fma(d, wide - centre[:, None], products)
        at += B * C if ROWS else B
        s += B
    total_1 = tl.sum(ones, 1).to(tl.float64)
    total_2 = tl.sum(products, 1).to(tl.float64) - left * total_1
    tl.store(sum_1 + split * total + planes, total_1, mask=valid)
    tl.store(sum_2 + split * total + planes, total_2, mask=valid)


@triton.jit
def gradient_apply(
    dy, x, m, scale, slope, offset, shift, dx, total, c_units, s_units, tiles, splits,
    CW: tl.constexpr, SW: tl.constexpr, ROWS: tl.constexpr, P: tl.constexpr, B: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """``scale * dy + slope * (x - m) + offset``, backwards; with ``shift``, dy is masked by a ReLU first."""
    C = c_units * CW
    S = s_units * SW
    pid = (tl.num_programs(0) - 1 - tl.program_id(0)).to(tl.int64)
    planes, valid, at, within, start, split = locate(pid, total, C, S, tiles, splits, ROWS, P, B)
    mean = number(m, planes, valid)
    a = number(scale, planes, valid)
    k = number(slope, planes, valid)
    centre = mean.to(ACC)
    left = mean - centre.to(tl.float64)
    c = (number(offset, planes, valid) - k * left).to(ACC)
    if shift is not None:
        b = (number(shift, planes, valid) - a * left).to(ACC)
    a = a.to(ACC)
    k = k.to(ACC)
    s = start + tl.arange(0, B)
    for _ in range(0, tl.minimum(S - start, tiles * B), B):
        here = valid[:, None] & (s < S)[None, :]
        wide = tl.load(x + at + within, mask=here, other=0.0).to(ACC)
        d = tl.load(dy + at + within, mask=here, other=0.0).to(ACC)
        if shift is not None:
            out = affine_of(wide, centre[:, None], a[:, None], b[:, None], None).to(x.dtype.element_ty)
            d = tl.where(out.to(ACC) <= 0.0, 0.0, d)
        found = tl.fma(a[:, None], d, tl.fma(k[:, None], wide - centre[:, None], c[:, None]))
        tl.store(dx + at + within, found.to(dx.dtype.element_ty), mask=here)
        at += B * C if ROWS else B
        s += B
