"""The four passes over pixels, for both layouts, and the merge of planes that were cut.

A tile is (P planes, B pixels) and reductions run along its second axis. In NCHW the planes of a tile lie behind one
another and pixels are contiguous; where channels are innermost (ROWS) its planes are neighbouring channels of one
instance. Only :func:`locate` and STEP, the way from one tile to the next, know the difference. A program walks over at
most ``tiles`` tiles of its planes; planes that are cut among ``splits`` programs leave (splits, N, C) partial results,
which a second kernel merges in a fixed order, so that every result is bitwise repeatable.

C and S come as ``c_units * CW`` and ``s_units * SW``, where CW and SW are powers of two that divide them: the compiler
then knows how far a row is aligned, and loads vectors. Offsets are int64 outside of a tile, int32 within one, so that a
tensor may have more than 2^31 elements, and so may a plane.

Products and sums are fused by name (``tl.fma``) and the launches switch automatic fusion off: the mask of a ReLU is
computed again in backward, and must be the forward's to the bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Not specialized: an integer of 1 would become a Python int, and every new alignment of one another compilation.
# CW and SW say all that the compiler has to know.
INTEGERS = ["total", "c_units", "s_units", "tiles", "splits", "chunk", "S"]


@triton.jit
def extents(c_units, s_units, CW: tl.constexpr, SW: tl.constexpr):
    """Return C and S; a plane may have more than 2^31 pixels."""
    return c_units * CW, s_units.to(tl.int64) * SW


@triton.jit
def locate(pid, total, C, S, tiles, splits, ROWS: tl.constexpr, P: tl.constexpr, B: tl.constexpr):
    """Return a program's planes, which of them exist, its first element, a tile's offsets, and where its results go.

    The last number is how many pixels it has.
    """
    lane = tl.arange(0, P)
    pixel = tl.arange(0, B)
    if ROWS:
        blocks = (C + P - 1) // P  # the block of channels is fastest: neighbours share DRAM pages
        block = pid % blocks
        split = (pid // blocks) % splits
        n = pid // blocks // splits
        start = split * tiles * B
        planes = n * C + block * P + lane
        valid = block * P + lane < C
        at = (n * S + start) * C + block * P
        within = pixel[None, :] * C + lane[:, None]
    else:
        split = pid % splits
        unit = pid // splits
        start = split * tiles * B
        planes = unit * P + lane
        valid = planes < total
        at = unit * P * S + start
        within = lane[:, None] * S.to(tl.int32) + pixel[None, :]  # several planes lie in a tile where S is small
    return planes, valid, at, within, split * total + planes, tl.minimum(S - start, tiles * B).to(tl.int32)


@triton.jit
def output(wide, centre, a, b, residual, at, here, ACC: tl.constexpr, DTYPE: tl.constexpr):
    """``a * (x - centre) + b`` (+ residual), rounded to the dtype that is stored: what a ReLU decides by."""
    y = tl.fma(a[:, None], wide - centre[:, None], b[:, None])
    if residual is not None:
        y += tl.load(residual + at, mask=here, other=0.0).to(ACC)
    return y.to(DTYPE).to(ACC)


@triton.jit(do_not_specialize=INTEGERS)
def moments(
    x, m, v, total, c_units, s_units, tiles, splits,
    CW: tl.constexpr, SW: tl.constexpr, ROWS: tl.constexpr, P: tl.constexpr, B: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Mean and biased variance of every plane, or of its part.

    Deviations are from the mean of the first tile, which is the whole plane where that fits (then this is the two-pass
    formula). It holds at least B/S of the plane, so that its distance from the plane's mean is at most sqrt(S/B)
    standard deviations: nothing cancels.
    """
    C, S = extents(c_units, s_units, CW, SW)
    pid = tl.program_id(0).to(tl.int64)
    _planes, valid, at, within, to, end = locate(pid, total, C, S, tiles, splits, ROWS, P, B)
    STEP = C if ROWS else 1
    pixel = tl.arange(0, B)
    here = valid[:, None] & (pixel < end)[None, :]
    wide = tl.load(x + at + within, mask=here, other=0.0).to(ACC)
    near = tl.sum(wide, 1) / tl.minimum(end, B).to(ACC)
    left = tl.where(here, wide - near[:, None], 0.0)
    lefts = left
    squares = left * left
    for s in range(B, end, B):
        at += B * STEP
        here = valid[:, None] & (s + pixel < end)[None, :]
        left = tl.load(x + at + within, mask=here, other=0.0).to(ACC) - near[:, None]
        left = tl.where(here, left, 0.0)
        lefts += left
        squares = tl.fma(left, left, squares)
    rest = tl.sum(lefts, 1).to(tl.float64) / end
    var = tl.sum(squares, 1).to(tl.float64) / end - rest * rest
    tl.store(m + to, near.to(tl.float64) + rest, mask=valid)
    tl.store(v + to, tl.where(var < 0.0, 0.0, var), mask=valid)  # not a maximum: NaN stays


@triton.jit(do_not_specialize=INTEGERS)
def merge_moments(parts_m, parts_v, m, v, total, S, chunk, splits, K: tl.constexpr):
    """Moments of planes from those of their parts, each of ``chunk`` pixels but for the last, by Chan's formula."""
    planes = tl.program_id(0).to(tl.int64) * K + tl.arange(0, K)
    valid = planes < total
    mean = tl.zeros([K], tl.float64)
    squares = tl.zeros([K], tl.float64)
    counted = tl.zeros([K], tl.int64)
    at = planes
    for _ in range(0, splits):
        here = tl.minimum(S - counted, chunk)
        m_part = tl.load(parts_m + at, mask=valid, other=0.0)
        v_part = tl.load(parts_v + at, mask=valid, other=0.0)
        distance = m_part - mean
        share = here.to(tl.float64) / (counted + here).to(tl.float64)
        mean += distance * share
        squares += v_part * here + distance * distance * (share * counted)
        counted += here
        at += total
    tl.store(m + planes, mean, mask=valid)
    tl.store(v + planes, squares / S, mask=valid)


@triton.jit(do_not_specialize=INTEGERS)
def merge_sums(parts_1, parts_2, sum_1, sum_2, total, splits, K: tl.constexpr):
    """Both sums of planes from those of their parts."""
    planes = tl.program_id(0).to(tl.int64) * K + tl.arange(0, K)
    valid = planes < total
    ones = tl.zeros([K], tl.float64)
    products = tl.zeros([K], tl.float64)
    at = planes
    for _ in range(0, splits):
        ones += tl.load(parts_1 + at, mask=valid, other=0.0)
        products += tl.load(parts_2 + at, mask=valid, other=0.0)
        at += total
    tl.store(sum_1 + planes, ones, mask=valid)
    tl.store(sum_2 + planes, products, mask=valid)


@triton.jit(do_not_specialize=INTEGERS)
def affine(
    x, m, scale, shift, residual, y, total, c_units, s_units, tiles, splits,
    RELU: tl.constexpr,
    CW: tl.constexpr, SW: tl.constexpr, ROWS: tl.constexpr, P: tl.constexpr, B: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """``scale * (x - m) + shift`` (+ residual, rectified). Backwards: the tail of x is what the cache still holds."""
    C, S = extents(c_units, s_units, CW, SW)
    pid = (tl.num_programs(0) - 1 - tl.program_id(0)).to(tl.int64)
    planes, valid, at, within, _to, end = locate(pid, total, C, S, tiles, splits, ROWS, P, B)
    STEP = C if ROWS else 1
    pixel = tl.arange(0, B)
    mean = tl.load(m + planes, mask=valid, other=0.0)
    a_wide = tl.load(scale + planes, mask=valid, other=0.0)
    centre = mean.to(ACC)
    a = a_wide.to(ACC)
    b = (tl.load(shift + planes, mask=valid, other=0.0) - a_wide * (mean - centre.to(tl.float64))).to(ACC)
    for s in range(0, end, B):
        here = valid[:, None] & (s + pixel < end)[None, :]
        wide = tl.load(x + at + within, mask=here, other=0.0).to(ACC)
        out = output(wide, centre, a, b, residual, at + within, here, ACC, y.dtype.element_ty)
        if RELU:
            out = tl.where(out <= 0.0, 0.0, out)  # not a maximum: NaN passes
        tl.store(y + at + within, out.to(y.dtype.element_ty), mask=here)
        at += B * STEP


@triton.jit(do_not_specialize=INTEGERS)
def gradient_sums(
    dy, x, m, scale, shift, residual, masked, sum_1, sum_2, total, c_units, s_units, tiles, splits,
    RELU: tl.constexpr,
    CW: tl.constexpr, SW: tl.constexpr, ROWS: tl.constexpr, P: tl.constexpr, B: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Sums of dy and of ``dy * (x - m)`` over the pixels; with RELU, dy is masked first, and stored where asked."""
    C, S = extents(c_units, s_units, CW, SW)
    pid = tl.program_id(0).to(tl.int64)
    planes, valid, at, within, to, end = locate(pid, total, C, S, tiles, splits, ROWS, P, B)
    STEP = C if ROWS else 1
    pixel = tl.arange(0, B)
    mean = tl.load(m + planes, mask=valid, other=0.0)
    centre = mean.to(ACC)
    left = mean - centre.to(tl.float64)
    if RELU:
        a_wide = tl.load(scale + planes, mask=valid, other=0.0)
        a = a_wide.to(ACC)
        b = (tl.load(shift + planes, mask=valid, other=0.0) - a_wide * left).to(ACC)
    ones = tl.zeros([P, B], ACC)
    products = tl.zeros([P, B], ACC)
    for s in range(0, end, B):
        here = valid[:, None] & (s + pixel < end)[None, :]
        wide = tl.load(x + at + within, mask=here, other=0.0).to(ACC)
        d = tl.load(dy + at + within, mask=here, other=0.0).to(ACC)
        if RELU:
            out = output(wide, centre, a, b, residual, at + within, here, ACC, x.dtype.element_ty)
            d = tl.where(out <= 0.0, 0.0, d)
            if masked is not None:
                tl.store(masked + at + within, d.to(x.dtype.element_ty), mask=here)
        ones += d
        # Beyond the plane d is 0; an infinite mean makes NaN of it, but then its own plane has NaN anyway.
        products = tl.fma(d, wide - centre[:, None], products)
        at += B * STEP
    sum_of_d = tl.sum(ones, 1).to(tl.float64)
    tl.store(sum_1 + to, sum_of_d, mask=valid)
    tl.store(sum_2 + to, tl.sum(products, 1).to(tl.float64) - left * sum_of_d, mask=valid)


@triton.jit(do_not_specialize=INTEGERS)
def gradient_apply(
    dy, x, m, scale, slope, offset, shift, dx, total, c_units, s_units, tiles, splits,
    RELU: tl.constexpr,
    CW: tl.constexpr, SW: tl.constexpr, ROWS: tl.constexpr, P: tl.constexpr, B: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """``scale * dy + slope * (x - m) + offset``, backwards as ``affine``; with RELU, dy is masked first."""
    C, S = extents(c_units, s_units, CW, SW)
    pid = (tl.num_programs(0) - 1 - tl.program_id(0)).to(tl.int64)
    planes, valid, at, within, _to, end = locate(pid, total, C, S, tiles, splits, ROWS, P, B)
    STEP = C if ROWS else 1
    pixel = tl.arange(0, B)
    mean = tl.load(m + planes, mask=valid, other=0.0)
    a_wide = tl.load(scale + planes, mask=valid, other=0.0)
    k_wide = tl.load(slope + planes, mask=valid, other=0.0)
    centre = mean.to(ACC)
    left = mean - centre.to(tl.float64)
    a = a_wide.to(ACC)
    k = k_wide.to(ACC)
    c = (tl.load(offset + planes, mask=valid, other=0.0) - k_wide * left).to(ACC)
    if RELU:
        b = (tl.load(shift + planes, mask=valid, other=0.0) - a_wide * left).to(ACC)
    for s in range(0, end, B):
        here = valid[:, None] & (s + pixel < end)[None, :]
        wide = tl.load(x + at + within, mask=here, other=0.0).to(ACC)
        d = tl.load(dy + at + within, mask=here, other=0.0).to(ACC)
        if RELU:
            out = output(wide, centre, a, b, None, at + within, here, ACC, x.dtype.element_ty)
            d = tl.where(out <= 0.0, 0.0, d)
        found = tl.fma(a[:, None], d, tl.fma(k[:, None], wide - centre[:, None], c[:, None]))
        tl.store(dx + at + within, found.to(dx.dtype.element_ty), mask=here)
        at += B * STEP
