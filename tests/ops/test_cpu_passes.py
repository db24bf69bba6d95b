"""The C passes against the reference in float64: labelled shapes, layouts, dtypes; threads; NaN; fused ReLU."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

import pytest
import torch

from calibnorm.ops.cpu import build, library
from calibnorm.ops.cpu import passes as cpu
from pass_checks import (
    check_affine,
    check_gradients,
    check_moments,
    check_nan_and_inf_stay_in_their_plane,
    check_relu_lets_nan_pass,
    everything,
    laid,
)

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
RELUS = ["none", "relu", "relu and residual"]

each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
each_relu = pytest.mark.parametrize("relu", RELUS)


@each_layout
@each_dtype
@each_shape
def test_moments(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> None:
    check_moments(cpu, shape, dtype, layout)


@each_relu
@each_layout
@each_dtype
@each_shape
def test_affine(shape: tuple[int, ...], dtype: torch.dtype, layout: str, relu: str) -> None:
    check_affine(cpu, shape, dtype, layout, relu)


@each_relu
@each_layout
@each_dtype
@each_shape
def test_gradients(shape: tuple[int, ...], dtype: torch.dtype, layout: str, relu: str) -> None:
    check_gradients(cpu, shape, dtype, layout, relu)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(1, 2, 301, 333), (16, 40, 17, 19), (3, 600, 9, 9)], ids=str)
def test_repeatable_and_the_same_for_any_number_of_threads(shape: tuple[int, ...], layout: str) -> None:
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 1, 2, 3):
            torch.set_num_threads(threads)
            runs.append(everything(cpu, shape, torch.float32, layout))
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(2, 5, 3, 3), (2, 40, 7, 7), (2, 5, 67, 71)], ids=str)
def test_nan_and_inf_stay_in_their_plane(shape: tuple[int, ...], layout: str, value: float) -> None:
    check_nan_and_inf_stay_in_their_plane(cpu, shape, layout, value)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_relu_lets_nan_pass(layout: str) -> None:
    check_relu_lets_nan_pass(cpu, layout)


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


# The other tables of functions. A process chooses one table, so a copy of the library, which starts anew, stands in.


@pytest.fixture(params=["base", "avx2"])
def narrower(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `cpu` run on the instruction set of ``CALIBNORM_CPU``."""
    monkeypatch.setenv("CALIBNORM_CPU", request.param)
    original = os.environ.get("CALIBNORM_LIBRARY") or build.SOURCES / build.LIBRARY  # `make sanitize` names its own
    monkeypatch.setenv("CALIBNORM_LIBRARY", str(shutil.copy(original, tmp_path)))
    found = library.load.__wrapped__()
    assert isinstance(found, library.Library), found
    # This machine may have no more than base.
    assert found.instructions in library.INSTRUCTION_SETS[: library.INSTRUCTION_SETS.index(request.param) + 1]
    monkeypatch.setattr(cpu, "load", lambda: found)


@pytest.mark.usefixtures("narrower")
@each_shape
def test_narrower_instructions(shape: tuple[int, ...]) -> None:
    for dtype in DTYPES:
        for layout in ("contiguous", "channels_last"):
            check_moments(cpu, shape, dtype, layout)
            for relu in RELUS:
                check_affine(cpu, shape, dtype, layout, relu)
                check_gradients(cpu, shape, dtype, layout, relu)


@pytest.mark.usefixtures("narrower")
def test_narrower_instructions_in_special_cases() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        test_half_types_convert_as_torch_does(dtype)
    for layout in ("contiguous", "channels_last"):
        test_outputs_too_large_for_the_caches(torch.float32, layout)
        test_repeatable_and_the_same_for_any_number_of_threads((16, 40, 17, 19), layout)
        check_relu_lets_nan_pass(cpu, layout)
        for value in (math.nan, math.inf):
            check_nan_and_inf_stay_in_their_plane(cpu, (2, 40, 7, 7), layout, value)
