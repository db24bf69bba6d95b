"""The Triton passes against the reference in float64: in the interpreter, or on a GPU where there is one."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from calibnorm.ops import reference
from calibnorm.ops.triton import passes
from cases import randn
from pass_checks import (
    bound,
    check_affine,
    check_gradients,
    check_moments,
    check_nan_and_inf_stay_in_their_plane,
    check_relu_lets_nan_pass,
    close,
    everything,
)
from triton_cuts import CUT

DEVICE = "cpu" if passes.interpreted() else "cuda"
WHOLE = {
    "rank2": (5, 20),
    "rank2 one channel": (9, 1),
    "1x1": (3, 40, 1, 1),
    "1d": (3, 5, 11),
    "7x7": (2, 33, 7, 7),
    "8x8": (1, 16, 8, 8),
    "3d": (1, 18, 3, 4, 5),
}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
each_layout = pytest.mark.parametrize("layout", ["contiguous", "channels_last"])


@each_layout
@pytest.mark.parametrize("relu", ["none", "relu", "relu and residual"])
@pytest.mark.parametrize("shape", WHOLE.values(), ids=WHOLE.keys())
def test_whole_planes(shape: tuple[int, ...], layout: str, relu: str) -> None:
    check_all(shape, torch.float32, layout, relu)


@each_dtype
@each_layout
def test_whole_planes_of_every_dtype(dtype: torch.dtype, layout: str) -> None:
    for relu in ("none", "relu", "relu and residual"):
        check_all((2, 5, 3, 5), dtype, layout, relu)


@pytest.mark.usefixtures("small")
@each_layout
@pytest.mark.parametrize("shape", CUT.values(), ids=CUT.keys())
def test_cut_planes(shape: tuple[int, ...], layout: str) -> None:
    for relu in ("none", "relu and residual"):
        check_all(shape, torch.float32, layout, relu)


@pytest.mark.usefixtures("small")
@each_dtype
@each_layout
def test_cut_planes_of_every_dtype(dtype: torch.dtype, layout: str) -> None:
    check_all((1, 2, 13, 17), dtype, layout, "none")


def check_all(shape: tuple[int, ...], dtype: torch.dtype, layout: str, relu: str) -> None:
    if relu == "none":
        check_moments(passes, shape, dtype, layout, DEVICE)
    check_affine(passes, shape, dtype, layout, relu, DEVICE)
    check_gradients(passes, shape, dtype, layout, relu, DEVICE)


def test_strided_inputs_and_a_gradient_of_another_layout() -> None:
    check_all((2, 6, 5, 7), torch.float32, "strided", "relu and residual")
    x, dy = (randn(2, 6, 5, 7, seed=i).to(DEVICE) for i in range(2))
    m, _ = passes.moments(x)
    expected = passes.gradient_sums(dy, x, m)
    found = passes.gradient_sums(dy.contiguous(memory_format=torch.channels_last), x, m)
    assert all(torch.equal(a, b) for a, b in zip(found[:2], expected[:2], strict=True))


@pytest.mark.usefixtures("small")
@each_layout
def test_variance_around_a_large_mean(layout: str) -> None:
    """E[x^2] - E[x]^2 in float32 would be off by more than the variance itself."""
    x = randn(1, 3, 21, 23, mean=1e4).to(DEVICE)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    m, v = passes.moments(x)
    expected_m, expected_v = reference.moments(x.double())
    # Deviations are from a mean that is rounded to float32; what that left is mended.
    close(m, expected_m, 1.0, bound(torch.float32, 483), torch.float64)
    close(v, expected_v, expected_v, bound(torch.float32, 483), torch.float64)


# The interpreter computes with numpy, which warns of inf - inf.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
@each_layout
@pytest.mark.parametrize("shape", [(2, 5, 3, 3), (2, 3, 11, 13)], ids=str)
def test_nan_and_inf_stay_in_their_plane(shape: tuple[int, ...], layout: str, value: float) -> None:
    check_nan_and_inf_stay_in_their_plane(passes, shape, layout, value, DEVICE)


@each_layout
def test_relu_lets_nan_pass(layout: str) -> None:
    check_relu_lets_nan_pass(passes, layout, DEVICE)


@pytest.mark.usefixtures("small")
@each_layout
def test_repeatable(layout: str) -> None:
    first, second = (everything(passes, (1, 2, 17, 19), torch.float32, layout, DEVICE) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_what_it_refuses_and_says() -> None:
    assert passes.unavailable() is None
    assert "triton" in passes.runs_with()
    x = randn(2, 3, 4, 4).to(DEVICE)
    assert passes.refuses(x) is None
    assert "int32" in str(passes.refuses(x.int()))
    assert "meta" in str(passes.refuses(x.to("meta")))
    assert "negated" in str(passes.refuses(torch._neg_view(x)))
    with FlopCounterMode(display=False):
        assert "mode" in str(passes.refuses(x))
