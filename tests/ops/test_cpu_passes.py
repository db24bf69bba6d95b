"""The C passes against the reference in float64: labelled shapes, layouts, dtypes; threads; NaN; fused ReLU."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from calibnorm.ops import cpu, reference
from cases import randn

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))

SHAPES = {
    "rank2": (5, 20),
    "rank2 one channel": (9, 1),
    "1x1": (3, 40, 1, 1),
    "1d": (3, 5, 11),
    "2x2": (4, 3, 2, 2),
    "3x5 planes, fewer channels than lanes": (2, 3, 3, 5),
    "7x7": (2, 33, 7, 7),
    "8x8": (3, 16, 8, 8),
    "odd": (2, 70, 13, 9),
    "3d": (2, 18, 3, 4, 5),
    "several tiles": (2, 5, 67, 71),
    "several blocks of channels": (2, 530, 4, 3),
    "cut in units": (1, 2, 301, 333),
    "one plane": (1, 1, 260, 259),
}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LAYOUTS = ["contiguous", "channels_last", "strided"]

each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
each_relu = pytest.mark.parametrize("relu", ["none", "relu", "relu and residual"])


def laid(x: Tensor, layout: str) -> Tensor:
    """x in the layout; ``strided`` is every other pixel of a larger tensor."""
    if layout == "channels_last":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "strided":
        return torch.stack([x, torch.full_like(x, math.nan)], -1)[..., 0]
    return x


def inputs(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> dict[str, Any]:
    """x, dy and a residual in the layout, and (N, C) numbers."""
    found = {name: laid(randn(*shape, seed=i, std=2.0, mean=0.5, dtype=dtype), layout) for i, name in enumerate("xgr")}
    numbers = {
        name: randn(*shape[:2], seed=10 + i, dtype=torch.float64)
        for i, name in enumerate(["m", "scale", "shift", "slope"])
    }
    return found | numbers | {"offset": randn(*shape[:2], seed=20, dtype=torch.float64)}


def doubled(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value.double() for name, value in values.items()}


def bound(dtype: torch.dtype, count: int) -> float:
    """Rounding of a blocked sum of ``count`` values in the accumulation dtype, relative to the sum of their sizes."""
    accumulated = torch.float64 if dtype == torch.float64 else torch.float32
    return 4 * torch.finfo(accumulated).eps * max(math.log2(count), 1.0)


def close(actual: Tensor, expected: Tensor, size: Tensor | float, relative: float, dtype: torch.dtype) -> None:
    """Compare with an error relative to ``size``, what went into each number, plus one rounding to ``dtype``."""
    assert actual.shape == expected.shape
    assert actual.dtype == dtype
    allowed = relative * size + torch.finfo(dtype).eps * expected.abs() + torch.finfo(dtype).tiny
    excess = ((actual.double() - expected).abs() - allowed).max().item()
    assert excess <= 0, excess


@each_layout
@each_dtype
@each_shape
def test_moments(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> None:
    x = inputs(shape, dtype, layout)["x"]
    m, v = cpu.moments(x)
    wide = x.double()
    expected_m, expected_v = reference.moments(wide)
    pixels = tuple(range(2, x.ndim))
    size = wide.abs().mean(pixels) if pixels else wide.abs()
    relative = bound(dtype, max(x[0, 0].numel(), 2))
    close(m, expected_m, size, relative, m.dtype)
    close(v, expected_v, expected_v, relative, m.dtype)


@each_relu
@each_layout
@each_dtype
@each_shape
def test_affine(shape: tuple[int, ...], dtype: torch.dtype, layout: str, relu: str) -> None:
    i = inputs(shape, dtype, layout)
    residual = i["r"] if "residual" in relu else None
    y = cpu.affine(i["x"], i["m"], i["scale"], i["shift"], residual, relu != "none")
    w = doubled(i)
    expected = reference.affine(
        w["x"], w["m"], w["scale"], w["shift"], None if residual is None else w["r"], relu != "none"
    )
    size = reference.affine(w["x"].abs(), -w["m"].abs(), w["scale"].abs(), w["shift"].abs()) + w["r"].abs()
    close(y, expected, size, bound(dtype, 2), dtype)
    dense = i["x"] if layout != "strided" else i["x"].contiguous()
    assert y.stride() == dense.stride()


@each_relu
@each_layout
@each_dtype
@each_shape
def test_gradients(shape: tuple[int, ...], dtype: torch.dtype, layout: str, relu: str) -> None:
    i = inputs(shape, dtype, layout)
    rectified = None
    if relu != "none":
        rectified = reference.Rectified(i["scale"], i["shift"], i["r"] if "residual" in relu else None)
    # The mask is compared where it was decided: by the sign of the output as it was stored.
    keep = torch.ones(shape, dtype=torch.float64)
    if rectified is not None:
        keep = (cpu.affine(i["x"], i["m"], i["scale"], i["shift"], rectified.residual) > 0).double()
    s1, s2, masked = cpu.gradient_sums(i["g"], i["x"], i["m"], rectified)
    w = doubled(i)
    g = w["g"] * keep
    expected_1, expected_2, _ = reference.gradient_sums(g, w["x"], w["m"])
    size_1, size_2, _ = reference.gradient_sums(g.abs(), w["x"].abs(), -w["m"].abs())
    relative = bound(dtype, max(g[0, 0].numel(), 2))
    close(s1, expected_1, size_1, relative, s1.dtype)
    close(s2, expected_2, size_2, relative, s1.dtype)
    numbers = [i["m"], i["scale"], i["slope"], i["offset"]]
    if rectified is not None and rectified.residual is not None:
        assert masked is not None
        assert torch.equal(masked.double(), g)
        dx = cpu.gradient_apply(masked, i["x"], *numbers)
    else:
        assert masked is None
        dx = cpu.gradient_apply(i["g"], i["x"], *numbers, None if rectified is None else i["shift"])
    expected = reference.gradient_apply(g, w["x"], w["m"], w["scale"], w["slope"], w["offset"])
    size = reference.gradient_apply(
        g.abs(), w["x"].abs(), -w["m"].abs(), w["scale"].abs(), w["slope"].abs(), w["offset"].abs()
    )
    close(dx, expected, size, bound(dtype, 2), dtype)


def everything(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> list[Tensor]:
    """Every result of the four passes."""
    i = inputs(shape, dtype, layout)
    m, v = cpu.moments(i["x"])
    rectified = reference.Rectified(i["scale"], i["shift"], i["r"])
    s1, s2, masked = cpu.gradient_sums(i["g"], i["x"], m, rectified)
    assert masked is not None
    y = cpu.affine(i["x"], m, i["scale"], i["shift"], i["r"], True)
    dx = cpu.gradient_apply(masked, i["x"], m, i["scale"], i["slope"], i["offset"])
    return [m, v, s1, s2, masked, y, dx]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(1, 2, 301, 333), (16, 40, 17, 19), (3, 600, 9, 9)], ids=str)
def test_repeatable_and_the_same_for_any_number_of_threads(shape: tuple[int, ...], layout: str) -> None:
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 1, 2, 3):
            torch.set_num_threads(threads)
            runs.append(everything(shape, torch.float32, layout))
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(2, 5, 3, 3), (2, 40, 7, 7), (2, 5, 67, 71)], ids=str)
def test_nan_and_inf_stay_in_their_plane(shape: tuple[int, ...], layout: str, value: float) -> None:
    i = inputs(shape, torch.float32, layout)
    x = i["x"].clone()
    x[1, 2, -1, -1] = value
    m, v = cpu.moments(x)
    s1, s2, _ = cpu.gradient_sums(x, i["x"], i["m"])
    for found in (m, v, s1, s2):
        wrong = ~torch.isfinite(found)
        assert wrong[1, 2]
        assert int(wrong.sum()) == 1


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_relu_lets_nan_pass(layout: str) -> None:
    x = inputs((2, 20, 5, 5), torch.float32, layout)["x"].clone()
    x[0, 3, 1, 1] = math.nan
    zero, one = torch.zeros(2, 20), torch.ones(2, 20)
    y = cpu.affine(x, zero, one, zero, relu=True)
    assert torch.equal(torch.nan_to_num(y, 7.0), torch.nan_to_num(torch.relu(x), 7.0))
    dx = cpu.gradient_apply(one[..., None, None].expand_as(x), x, zero, one, zero, zero, shift=zero)
    assert dx[0, 3, 1, 1].isnan()
    assert int(dx.isnan().sum()) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_convert_as_torch_does(dtype: torch.dtype) -> None:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    x = bits.view(dtype).view(1, 64, 32, 32)
    zero, one = torch.zeros(1, 64), torch.ones(1, 64)
    y = cpu.affine(x, zero, one, zero)
    assert torch.equal(y.isnan(), x.isnan())
    # + shift turns -0 into 0, as in float32
    assert torch.equal(y.nan_to_num(0.0), (x.float() + 0.0).to(dtype).nan_to_num(0.0))
    scale = torch.full((1, 64), 1.00390625 + 2**-12)
    assert torch.equal(
        cpu.affine(x, zero, scale, zero).nan_to_num(0.0), (x.float() * scale[..., None, None]).to(dtype).nan_to_num(0.0)
    )


@each_dtype
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_outputs_too_large_for_the_caches(dtype: torch.dtype, layout: str) -> None:
    """From 16 MiB on they are stored past the caches, by other instructions: the same bits as in smaller pieces."""
    shape = (192 // torch.finfo(dtype).bits, 64, 128, 128)
    x, dy = (laid(torch.randn(shape, dtype=dtype), layout) for _ in range(2))
    m, scale, shift, slope = (torch.randn(shape[:2], dtype=torch.float64) for _ in range(4))
    of = {cpu.affine: (x, m, scale, shift), cpu.gradient_apply: (dy, x, m, scale, slope, shift)}
    for passes, arguments in of.items():
        whole = passes(*arguments)
        assert whole.nbytes >= 2**24
        pieces = [passes(*(t[i : i + 1] for t in arguments)) for i in range(shape[0])]
        assert all(piece.nbytes < 2**24 for piece in pieces)
        assert torch.equal(whole, torch.cat(pieces))


@pytest.mark.parametrize("instructions", ["base", "avx2"])
def test_narrower_instruction_sets(instructions: str) -> None:
    """The same tests with the other tables; in a process of its own, because the choice is made once."""
    if os.environ.get("CALIBNORM_CPU"):
        pytest.skip("this is that process")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:pytest_cov",
         __file__, "-k", "contiguous or channels_last or convert"],
        env=os.environ | {"CALIBNORM_CPU": instructions}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
