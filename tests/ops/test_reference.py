"""The four passes against the formulas that they stand for, written out directly."""

from __future__ import annotations

import pytest
import torch

from calibnorm.ops import reference
from cases import randn
from tolerances import ORACLE, error, reduction, rounding

SHAPES = [(4, 3), (4, 3, 5), (4, 3, 5, 2), (2, 3, 2, 3, 2), (2, 3, 1, 1)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def wide(t, x):
    return t.reshape(*t.shape, *[1] * (x.ndim - 2))


def case(shape):
    x, dy = (randn(*shape, seed=i, dtype=torch.float64, mean=3.0) for i in (0, 1))
    return x, dy, *(randn(*shape[:2], seed=i, dtype=torch.float64) for i in (2, 3, 4, 5))


@each_shape
def test_moments(shape):
    x, *_ = case(shape)
    flat = x.reshape(*shape[:2], -1)
    m, v = reference.moments(x)
    assert error(m, flat.mean(2)) <= ORACLE
    assert error(v, flat.var(2, unbiased=False)) <= ORACLE


@each_shape
def test_affine(shape):
    x, _, m, scale, shift, _ = case(shape)
    assert error(reference.affine(x, m, scale, shift), wide(scale, x) * (x - wide(m, x)) + wide(shift, x)) <= ORACLE


@each_shape
def test_gradient_sums(shape):
    x, dy, m, *_ = case(shape)
    s1, s2, _ = reference.gradient_sums(dy, x, m)
    assert error(s1, dy.reshape(*shape[:2], -1).sum(2)) <= ORACLE
    assert error(s2, (dy * (x - wide(m, x))).reshape(*shape[:2], -1).sum(2)) <= ORACLE


@each_shape
def test_gradient_apply(shape):
    x, dy, m, scale, slope, offset = case(shape)
    expected = wide(scale, x) * dy + wide(slope, x) * (x - wide(m, x)) + wide(offset, x)
    assert error(reference.gradient_apply(dy, x, m, scale, slope, offset), expected) <= ORACLE


@each_shape
def test_coefficients_of_channels_broadcast(shape):
    """A method without a gate may hand over (C,) expanded; the passes take any stride."""
    x, dy, m, *_ = case(shape)
    scale, shift = (randn(3, seed=i, dtype=torch.float64) for i in (7, 8))
    by_plane = [t.expand(shape[:2]) for t in (scale, shift)]
    contiguous = [t.contiguous() for t in by_plane]
    assert torch.equal(reference.affine(x, m, *by_plane), reference.affine(x, m, *contiguous))
    assert torch.equal(
        reference.gradient_apply(dy, x, m, *by_plane, shift.expand(shape[:2])),
        reference.gradient_apply(dy, x, m, *contiguous, contiguous[1]),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    """Pixels in float32, (N, C) numbers in float64, the output in the input's dtype."""
    x, dy = (randn(4, 3, 8, 8, seed=i).to(dtype) for i in (0, 1))
    m, v = reference.moments(x)
    assert m.dtype == v.dtype == torch.float64
    exact = x.double()
    bound = reduction(torch.float32, 64)
    assert error(m, exact.mean((2, 3))) <= bound
    assert error(v, exact.var((2, 3), unbiased=False)) <= bound
    s1, s2, _ = reference.gradient_sums(dy, x, m)
    assert s1.dtype == s2.dtype == torch.float64
    assert error(s2, (dy.double() * (exact - wide(m, x))).sum((2, 3))) <= bound
    y = reference.affine(x, m, v, m)
    assert y.dtype == dtype
    assert error(y, wide(v, x) * (exact - wide(m, x)) + wide(m, x)) <= rounding(dtype, 1)
    assert reference.gradient_apply(dy, x, m, v, v, m).dtype == dtype
    assert reference.moments(x, torch.float32)[0].dtype == torch.float32


@pytest.mark.parametrize("mean", [1e2, 1e4, 1e6])
def test_a_large_mean_costs_nothing(mean):
    """Moments, both sums and the output are as good as at mean 0, although float32 rounds the mean by up to 0.03."""
    x, dy = randn(4, 3, 8, 8, mean=mean), randn(4, 3, 8, 8, seed=1)
    exact = x.double()
    true_mean = exact.mean((2, 3))
    m, v = reference.moments(x)
    bound = reduction(torch.float32, 64)
    assert (m - true_mean).abs().max() <= bound
    assert error(v, exact.var((2, 3), unbiased=False)) <= bound
    centred = exact - wide(true_mean, x)
    assert error(reference.gradient_sums(dy, x, m)[1], (dy.double() * centred).sum((2, 3))) <= bound
    one, zero = torch.ones_like(m), torch.zeros_like(m)
    assert error(reference.affine(x, m, one, zero), centred) <= bound
    assert error(reference.gradient_apply(dy, x, m, one, one, zero), dy.double() + centred) <= bound


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "channels_last"])
def test_overwriting_intermediates_changes_nothing(dtype, form):
    """Without a graph the passes work in place: never on what they were given, and to the same values."""
    given = [
        randn(4, 3, 8, 8, seed=i, dtype=torch.float64, mean=3.0).to(dtype).to(memory_format=form) for i in range(3)
    ]
    x, dy, residual = given
    m, scale, shift = (randn(4, 3, seed=i, dtype=torch.float64) for i in (3, 4, 5))
    kept = [t.clone() for t in (*given, m, scale, shift)]

    def passes():
        rectified = reference.Rectified(scale, shift, residual)
        return [
            *reference.moments(x),
            reference.affine(x, m, scale, shift, residual, relu=True),
            *reference.gradient_sums(dy, x, m, rectified),
            reference.gradient_apply(dy, x, m, scale, shift, scale, shift),
        ]

    watched = passes()
    with torch.no_grad():
        overwriting = passes()
    assert all(torch.equal(a, b) for a, b in zip((*given, m, scale, shift), kept, strict=True))
    bound = rounding(dtype, 1) if dtype == torch.bfloat16 else ORACLE
    assert all(error(a, b) <= bound for a, b in zip(overwriting, watched, strict=True))


def test_moments_where_the_first_rows_are_far_from_the_rest():
    """The variance is taken around the mean of the first eighth, which is the worst that it can be here."""
    x = randn(4, 3, 16, 16)
    x[:, :, :2] += 1e4
    m, v = reference.moments(x)
    bound = 8 * reduction(torch.float32, 256)
    assert error(m, x.double().mean((2, 3))) <= bound
    assert error(v, x.double().var((2, 3), unbiased=False)) <= bound
