"""A layer with given statistics in one pass: what three passes give, around every size threshold."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from calibnorm.methods import BN, IEBN, RBN, Method
from calibnorm.ops import Call
from calibnorm.ops.cpu import coefficients as by_hand
from calibnorm.ops.cpu import fused, passes
from cases import randn
from layer_checks import call_of, moved
from pass_checks import laid
from tolerances import error, reduction

pytestmark = pytest.mark.skipif(passes.unavailable() is not None, reason=str(passes.unavailable()))

METHODS = [
    BN(),
    IEBN(position="both"),
    IEBN(gate_input="standardized"),
    RBN(),
    RBN(center_stat="std", scale_stat="std"),
    RBN(scaling=False),
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = {
    "4x4, one instance": (1, 67, 4, 4),
    "7x7": (3, 70, 7, 7),
    "few channels": (2, 3, 5, 3),
    "a block and one": (2, 17, 16, 16),
    "larger than what is summed plane by plane at once": (2, 17, 17, 16),
    "one tile": (1, 9, 32, 64),
    "several tiles": (1, 9, 47, 45),
    "a few planes at a time": (1, 13, 66, 65),
    "a plane at a time": (1, 11, 130, 127),
    "several strips of channels": (2, 530, 3, 2),
    "the largest": (1, 2, 255, 257),
    "too large, cut": (1, 2, 257, 256),
    "1d": (2, 18, 11),
    "3d": (2, 18, 3, 4, 5),
}


def three_passes(x: Tensor, call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, m and v, one pass after another."""
    m, v = passes.moments(x)
    assert call.statistics is not None
    mean, var = call.statistics
    if isinstance(call.step.method, BN):  # which is centred with the given mean
        m, v = mean.to(m).expand_as(m).contiguous(), torch.zeros_like(v)
    wide = call._replace(statistics=(mean.double(), var.double()), tensors=tuple(t.double() for t in call.tensors))
    scale, shift, _ = by_hand.coefficients(wide, m, v)
    return passes.affine(x, m, scale, shift, call.residual, call.relu), m, v


def check(method: Method, shape: tuple[int, ...], dtype: torch.dtype, layout: str, end: str) -> None:
    numbers = torch.float64 if dtype is torch.float64 else torch.float32
    call = moved(call_of(method, shape[1], True, end, shape, numbers), "cpu", dtype, layout)
    x = laid(randn(*shape, seed=1, mean=1.0).to(dtype), layout)
    y, m, v = three_passes(x, call)
    for kept in (True, False):
        with torch.set_grad_enabled(kept):
            done = fused.forward(x, call)
        # The compiler rounds a shift of channels_last once here, and twice there.
        assert torch.equal(done.y, y) if layout == "contiguous" else error(done.y, y) <= reduction(dtype, 64)
        assert done.y.stride() == y.stride()
        assert (done.moments is not None) == kept
        assert done.moments is None or torch.equal(done.moments, torch.stack((m, v)))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_equals_three_passes(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> None:
    for end in ("none", "relu", "residual", "relu and residual"):
        check(RBN(), shape, dtype, layout, end)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_equals_three_passes_for_every_kind_of_method(method: Method, layout: str) -> None:
    check(method, (3, 37, 6, 5), torch.float32, layout, "none")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(64, 40, 7, 7), (3, 70, 40, 40), (5, 3, 130, 127)], ids=str)
def test_same_bits_for_any_number_of_threads(shape: tuple[int, ...], layout: str) -> None:
    call = moved(
        call_of(IEBN(), shape[1], True, "relu and residual", shape, torch.float32), "cpu", torch.float32, layout
    )
    x, threads, found = laid(randn(*shape, seed=1), layout), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(fused.forward(x, call).y)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], y) for y in found[1:])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_nan_stays_in_its_plane(layout: str) -> None:
    shape = (2, 35, 5, 5)
    call = call_of(RBN(), 35, True, "none", shape, torch.float32)
    x = randn(*shape, seed=1)
    x[1, 17, 2, 2] = float("nan")
    y = fused.forward(laid(x, layout), call).y
    assert y[1, 17].isnan().all()
    assert int(y.isnan().sum()) == 25
