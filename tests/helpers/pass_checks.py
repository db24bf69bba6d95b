"""What every backend's passes must do, against the reference in float64: one set of checks for C and for Triton."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from calibnorm.ops import reference
from calibnorm.ops.three_steps import Passes
from drawn import randn


def laid(x: Tensor, layout: str) -> Tensor:
    """x in the layout; ``strided`` is every other pixel of a larger tensor."""
    if layout == "channels_last":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "strided":
        return torch.stack([x, torch.full_like(x, math.nan)], -1)[..., 0]
    return x


def inputs(shape: tuple[int, ...], dtype: torch.dtype, layout: str, device: str = "cpu") -> dict[str, Any]:
    """x, dy and a residual in the layout, and (N, C) numbers."""
    found = {name: randn(*shape, seed=i, std=2.0, mean=0.5, dtype=dtype) for i, name in enumerate("xgr")}
    numbers = {
        name: randn(*shape[:2], seed=10 + i, dtype=torch.float64)
        for i, name in enumerate(["m", "scale", "shift", "slope"])
    }
    found |= numbers | {"offset": randn(*shape[:2], seed=20, dtype=torch.float64)}
    # Not t.to(device) alone: it would copy a strided view to a dense tensor.
    return {name: laid(t.to(device), layout) if name in "xgr" else t.to(device) for name, t in found.items()}


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


def check_moments(passes: Passes, shape: tuple[int, ...], dtype: torch.dtype, layout: str, device: str = "cpu") -> None:
    x = inputs(shape, dtype, layout, device)["x"]
    m, v = passes.moments(x)
    wide = x.double()
    expected_m, expected_v = reference.moments(wide)
    pixels = tuple(range(2, x.ndim))
    size = wide.abs().mean(pixels) if pixels else wide.abs()
    relative = bound(dtype, max(x[0, 0].numel(), 2))
    close(m, expected_m, size, relative, m.dtype)
    close(v, expected_v, expected_v, relative, m.dtype)


def check_affine(
    passes: Passes, shape: tuple[int, ...], dtype: torch.dtype, layout: str, relu: str, device: str = "cpu"
) -> None:
    i = inputs(shape, dtype, layout, device)
    residual = i["r"] if "residual" in relu else None
    y = passes.affine(i["x"], i["m"], i["scale"], i["shift"], residual, relu != "none")
    w = doubled(i)
    expected = reference.affine(
        w["x"], w["m"], w["scale"], w["shift"], None if residual is None else w["r"], relu != "none"
    )
    size = reference.affine(w["x"].abs(), -w["m"].abs(), w["scale"].abs(), w["shift"].abs()) + w["r"].abs()
    close(y, expected, size, bound(dtype, 2), dtype)
    dense = i["x"] if layout != "strided" else i["x"].contiguous()
    assert y.stride() == dense.stride()


def check_gradients(
    passes: Passes, shape: tuple[int, ...], dtype: torch.dtype, layout: str, relu: str, device: str = "cpu"
) -> None:
    i = inputs(shape, dtype, layout, device)
    rectified = None
    if relu != "none":
        rectified = reference.Rectified(i["scale"], i["shift"], i["r"] if "residual" in relu else None)
    # The mask is compared where it was decided: by the sign of the output as it was stored.
    keep = torch.ones(shape, dtype=torch.float64, device=device)
    if rectified is not None:
        keep = (passes.affine(i["x"], i["m"], i["scale"], i["shift"], rectified.residual) > 0).double()
    s1, s2, masked = passes.gradient_sums(i["g"], i["x"], i["m"], rectified)
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
        dx = passes.gradient_apply(masked, i["x"], *numbers)
    else:
        assert masked is None
        dx = passes.gradient_apply(i["g"], i["x"], *numbers, None if rectified is None else i["shift"])
    expected = reference.gradient_apply(g, w["x"], w["m"], w["scale"], w["slope"], w["offset"])
    size = reference.gradient_apply(
        g.abs(), w["x"].abs(), -w["m"].abs(), w["scale"].abs(), w["slope"].abs(), w["offset"].abs()
    )
    close(dx, expected, size, bound(dtype, 2), dtype)


def everything(
    passes: Passes, shape: tuple[int, ...], dtype: torch.dtype, layout: str, device: str = "cpu"
) -> list[Tensor]:
    """Every result of the four passes."""
    i = inputs(shape, dtype, layout, device)
    m, v = passes.moments(i["x"])
    rectified = reference.Rectified(i["scale"], i["shift"], i["r"])
    s1, s2, masked = passes.gradient_sums(i["g"], i["x"], m, rectified)
    assert masked is not None
    y = passes.affine(i["x"], m, i["scale"], i["shift"], i["r"], True)
    dx = passes.gradient_apply(masked, i["x"], m, i["scale"], i["slope"], i["offset"])
    return [m, v, s1, s2, masked, y, dx]


def check_nan_and_inf_stay_in_their_plane(
    passes: Passes, shape: tuple[int, ...], layout: str, value: float, device: str = "cpu"
) -> None:
    i = inputs(shape, torch.float32, layout, device)
    x = i["x"].clone()
    x[1, 2, -1, -1] = value
    m, v = passes.moments(x)
    s1, s2, _ = passes.gradient_sums(x, i["x"], i["m"])
    for found in (m, v, s1, s2):
        wrong = ~torch.isfinite(found)
        assert wrong[1, 2]
        assert int(wrong.sum()) == 1


def check_relu_lets_nan_pass(passes: Passes, layout: str, device: str = "cpu") -> None:
    x = inputs((2, 20, 5, 5), torch.float32, layout, device)["x"].clone()
    x[0, 3, 1, 1] = math.nan
    zero, one = torch.zeros(2, 20, device=device), torch.ones(2, 20, device=device)
    y = passes.affine(x, zero, one, zero, relu=True)
    assert torch.equal(torch.nan_to_num(y, 7.0), torch.nan_to_num(torch.relu(x), 7.0))
    dx = passes.gradient_apply(one[..., None, None].expand_as(x), x, zero, one, zero, zero, shift=zero)
    assert dx[0, 3, 1, 1].isnan()
    assert int(dx.isnan().sum()) == 1
