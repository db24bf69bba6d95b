"""A whole layer in one C call a direction: equal to the layer step by step, repeatable, the same for any threads."""

from __future__ import annotations

import pytest
import torch

import calibnorm as cn
from calibnorm.methods import BN, IEBN, RBN, Method
from calibnorm.ops import Moving, update_running
from calibnorm.ops.cpu import fused, passes
from calibnorm.ops.kernel_methods import kind_of
from calibnorm.ops.three_steps import StepByStep, Wanted
from cases import randn
from layer_checks import both_ways, call_of
from tolerances import error, reduction

pytestmark = pytest.mark.skipif(passes.unavailable() is not None, reason=str(passes.unavailable()))

STEP_BY_STEP = StepByStep(passes)  # type: ignore[arg-type]
METHODS = [
    BN(),
    IEBN(),
    IEBN(position="both"),
    IEBN(gate_input="standardized"),
    RBN(),
    RBN(center_stat="std", scale_stat="std"),
]
SHAPES = [(3, 5, 4, 6), (7, 67), (5, 3, 1, 1), (2, 3, 257, 256), (2, 4, 3, 2, 5)]
"""Small; more than one block of channels, one pixel a plane; the same in four dimensions; planes that are cut; 3d."""


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("end", ["none", "residual", "relu", "relu and residual"])
@pytest.mark.parametrize("given", [False, True], ids=["batch", "running"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_one_call_equals_the_layer_step_by_step(
    method: Method, shape: tuple[int, ...], given: bool, end: str, dtype: torch.dtype
) -> None:
    call = call_of(method, shape[1], given, end, shape, dtype)
    x, dy = randn(*shape, seed=1, dtype=dtype, mean=1.0), randn(*shape, seed=2, dtype=dtype)
    assert kind_of(call.step.method) is not None
    found = list(zip(both_ways(fused, x, dy, call), both_ways(STEP_BY_STEP, x, dy, call), strict=True))
    assert len(found) == 4 + ("residual" in end) + len(call.tensors)
    # The passes are the same; only float64 coefficients differ, and their rounding to the dtype.
    assert all(a.dtype == b.dtype and error(a, b) <= max(reduction(dtype, 64), 1e-12) for a, b in found)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(3, 67, 40, 40), (2, 3, 300, 301), (300, 200, 1, 1)], ids=str)
def test_same_bits_with_one_and_two_threads(shape: tuple[int, ...], layout: str) -> None:
    call = call_of(RBN(), shape[1], False, "relu and residual", shape, torch.float32)
    x, dy = randn(*shape, seed=1), randn(*shape, seed=2)
    if layout == "channels_last":
        x, dy = x.contiguous(memory_format=torch.channels_last), dy.contiguous(memory_format=torch.channels_last)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            results.append(list(both_ways(fused, x, dy, call)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*results, strict=True))


def test_gradients_have_the_dtypes_of_their_tensors() -> None:
    """Learnable tensors of several dtypes, one of them strided, beside a half input."""
    shape = (3, 4, 5, 5)
    call = call_of(RBN(), 4, False, "none", shape, torch.float32)
    dtypes = (torch.bfloat16, torch.float32, torch.float64, torch.float32, torch.float16)
    strided = torch.stack([call.tensors[1], call.tensors[1]], 1)[:, 0]
    tensors = [t.to(dtype) for t, dtype in zip((call.tensors[0], strided, *call.tensors[2:]), dtypes, strict=True)]
    call = call._replace(tensors=tuple(tensors))
    x = randn(*shape, seed=1).bfloat16()
    found = list(zip(both_ways(fused, x, x, call), both_ways(STEP_BY_STEP, x, x, call), strict=True))
    assert tuple(a.dtype for a, _ in found[-5:]) == dtypes
    assert all(error(a, b) <= reduction(b.dtype, 64) for a, b in found)


def test_only_wanted_gradients() -> None:
    shape = (3, 4, 5, 5)
    call, x = call_of(RBN(), 4, False, "none", shape, torch.float32), randn(*shape, seed=1)
    done = fused.forward(x, call)
    found = fused.backward(x, x, done.moments, call, Wanted(False, False, (True, False, True, False, True)))
    assert found.x is None
    assert found.residual is None
    assert [g is None for g in found.tensors] == [False, True, False, True, False]
    every = fused.backward(x, x, done.moments, call, Wanted(True, False, (True,) * 5))
    assert all(
        torch.equal(g, h) for g, h in zip(found.tensors, every.tensors, strict=True) if g is not None and h is not None
    )


def test_autograd_sees_that_running_statistics_moved() -> None:
    """They move in C, where torch does not look: a graph that saved them must still refuse to use them."""
    layer = cn.BN2d(3)
    before = [b._version for b in layer.bn.buffers()]
    weight = torch.ones(3, requires_grad=True)
    product = (weight * layer.bn.running_mean).sum()
    layer(randn(2, 3, 4, 4))
    assert all(b._version > version for b, version in zip(layer.bn.buffers(), before, strict=True))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(3, 4, 5, 5), (5, 4, 1, 1)], ids=str)
def test_running_statistics_move_in_the_same_call(
    shape: tuple[int, ...], dtype: torch.dtype, counted: bool, learns: bool
) -> None:
    """As after it; the statistics of the batch are kept with the moments then, and backward finds them there."""
    x, call = randn(*shape, seed=1), call_of(RBN(), 4, False, "none", shape, torch.float32)
    buffers = [(torch.zeros(4, dtype=dtype), torch.ones(4, dtype=dtype), torch.tensor(3)) for _ in range(2)]
    before, after = [b if counted else b[:2] for b in buffers]
    with torch.set_grad_enabled(learns):
        expected, done = fused.forward(x, call), fused.forward(x, call._replace(moving=Moving(after, 0.3, 1.25)))
    assert expected.statistics is not None
    assert passes.update_running(before, *expected.statistics, 0.3, 1.25)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(done.y, expected.y)
    assert done.statistics is None
    if learns:
        wanted = Wanted(True, False, (True,) * 5)
        found = fused.backward(x.flip(0), x, done.moments, call, wanted)
        known = call._replace(found=expected.statistics)
        theirs = fused.backward(x.flip(0), x, expected.moments, known, wanted)
        assert torch.equal(found.x, theirs.x)
        assert all(torch.equal(a, b) for a, b in zip(found.tensors, theirs.tensors, strict=True))


def test_half_running_statistics_stay_for_torch() -> None:
    x, call = randn(3, 4, 5, 5, seed=1), call_of(BN(), 4, False, "none", (3, 4, 5, 5), torch.float32)
    buffers = torch.zeros(4, dtype=torch.bfloat16), torch.ones(4, dtype=torch.bfloat16)
    done = fused.forward(x, call._replace(moving=Moving(buffers, 0.3, 1.25)))
    assert done.statistics is not None
    assert buffers[0].eq(0).all()


def test_batched_gradients_of_a_training_layer() -> None:
    """They reach another backend than the forward's, which has kept its statistics its own way."""
    layer, x = cn.RBN2d(3).double(), randn(4, 3, 5, 5, dtype=torch.float64).requires_grad_()
    y, many = layer(x), randn(2, 4, 3, 5, 5, seed=1, dtype=torch.float64)
    (found,) = torch.autograd.grad(y, x, many, retain_graph=True, is_grads_batched=True)
    expected = torch.stack([torch.autograd.grad(y, x, dy, retain_graph=True)[0] for dy in many])
    assert error(found, expected) <= 1e-12


def test_buffers_that_c_does_not_move() -> None:
    """Half, strided and mixed buffers go through torch's operations, to the same values."""
    mean, var = randn(4, seed=1, dtype=torch.float64), randn(4, seed=2, dtype=torch.float64).abs()
    expected = torch.zeros(4).double(), torch.ones(4).double()
    update_running(*expected, mean, var, 0.1, 9)
    others = [
        (torch.zeros(4).bfloat16(), torch.ones(4).bfloat16()),
        (torch.zeros(4, 2)[:, 0], torch.ones(4, 2)[:, 1]),
        (torch.zeros(4), torch.ones(4).double()),
    ]
    for running_mean, running_var in others:
        count = torch.zeros((), dtype=torch.int64)
        update_running(running_mean, running_var, mean, var, 0.1, 9, count)
        assert error(running_mean, expected[0]) <= reduction(running_mean.dtype, 4)
        assert error(running_var, expected[1]) <= reduction(running_var.dtype, 4)
        assert count == 1
