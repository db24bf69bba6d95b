"""Layers through the Triton backend: float64 against the reference, values and all gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import calibnorm as cn
from calibnorm.methods import BN, IEBN, RBN, Method
from calibnorm.ops import dispatch, reference
from calibnorm.ops.kernel_methods import kind_of
from calibnorm.ops.three_steps import StepByStep, Wanted
from calibnorm.ops.triton import fused, launch, passes
from cases import LAYERS_2D, each_layout, each_mode, gradients, image, randn, randomize
from layer_checks import both_ways, call_of, moved
from pass_checks import laid
from tolerances import ORACLE, error, reduction, rounding

DEVICE = "cpu" if passes.interpreted() else "cuda"


@pytest.mark.parametrize("layer_type", LAYERS_2D, ids=lambda t: t.__name__)
@pytest.mark.parametrize("act", [None, "relu"])
@each_mode
@each_layout
def test_equals_the_reference(layer_type: Any, act: str | None, training: bool, layout: Any) -> None:
    layer = randomize(layer_type(4, dtype=torch.float64, act=act)).to(DEVICE).train(training)
    results = []
    for backend in ("triton", "reference"):
        leaves = {"x": image(torch.float64, layout=layout).to(DEVICE).requires_grad_()}
        leaves["residual"] = image(torch.float64, seed=5, layout=layout).to(DEVICE).requires_grad_()
        leaves |= dict(layer.named_parameters())
        with cn.use_backend(backend):
            y = layer(leaves["x"], leaves["residual"])
            dy = randn(*y.shape, seed=9, dtype=torch.float64).to(DEVICE)
            results.append({"y": y, **gradients(y, leaves, dy)})
    wrong = {name: e for name in results[0] if not (e := error(results[0][name], results[1][name])) <= ORACLE}
    assert not wrong, wrong


def test_chosen_for_its_device() -> None:
    x = randn(2, 3, 4, 4).to(DEVICE)
    with cn.use_backend("triton"):
        assert dispatch.choose(x).name == "triton"
        with pytest.raises(RuntimeError, match="does not take this input"):
            dispatch.choose(x.int())
    # The interpreter is for tests: where the C kernels run, they go first.
    assert dispatch.choose(x).name == ("cpu" if DEVICE == "cpu" and cn.backends()["cpu"].runs else "triton")


METHODS = [
    BN(),
    *(IEBN(position=p) for p in ("gamma", "beta", "both")),
    IEBN(position="both", gate_input="standardized"),
    RBN(centering=False, scaling=False),
    RBN(scaling=False, center_stat="std"),
    *(RBN(center_stat=c, scale_stat=s) for c in ("mean", "std") for s in ("mean", "std")),
]
STEP_BY_STEP = StepByStep(reference)  # type: ignore[arg-type]
SHAPES = [(3, 5, 4, 6), (7, 6), (5, 3, 1, 1), (2, 3, 17, 13), (2, 3, 4, 3, 2)]
"""Small; more than one tile of instances and of channels; one pixel a plane, in two ranks; planes that are cut; 3d."""

each_end = pytest.mark.parametrize("end", ["none", "residual", "relu", "relu and residual"])
each_statistics = pytest.mark.parametrize("given", [False, True], ids=["batch", "running"])


def check_layer(
    method: Method,
    shape: tuple[int, ...],
    given: bool,
    end: str,
    layout: str = "contiguous",
    dtype: Any = torch.float64,
) -> None:
    call = call_of(method, shape[1], given, end, shape, torch.float64)
    x, dy = (laid(randn(*shape, seed=i, dtype=dtype, mean=1.0), layout).to(DEVICE) for i in (1, 2))
    call = moved(call, DEVICE, dtype, layout)
    assert kind_of(call.step.method) is not None
    wide = moved(call, DEVICE, torch.float64, layout)
    expected = both_ways(STEP_BY_STEP, x.double(), dy.double(), wide)
    found = list(zip(both_ways(fused, x, dy, call), expected, strict=True))
    assert len(found) == 4 + ("residual" in end) + len(call.tensors)
    # The mask of a ReLU is where the output was rounded: a half output may be 0 where the wide one is not.
    allowed = 1e-12 if dtype == torch.float64 else reduction(dtype, 64)
    assert not (wrong := [e for a, b in found if not (e := error(a, b)) <= allowed]), wrong


@pytest.mark.usefixtures("small")
@each_statistics
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_three_launches_equal_the_layer_step_by_step(method: Method, given: bool) -> None:
    check_layer(method, (6, 5, 4, 6), given, "none" if given else "relu and residual")


@pytest.mark.usefixtures("small")
@each_end
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape_and_end(shape: tuple[int, ...], end: str) -> None:
    check_layer(RBN(), shape, "residual" in end, end)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_every_dtype_and_layout(layout: str, dtype: torch.dtype) -> None:
    check_layer(IEBN(), (2, 5, 9, 11), False, "residual", layout, dtype)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("method", [BN(), RBN(center_stat="std", scale_stat="std")], ids=str)
def test_a_mean_of_1000_standard_deviations(method: Method) -> None:
    """E[M^2] - E[M]^2 in float32 would have no digit left, and the mean of a plane in float32 three."""
    x = randn(6, 3, 4, 5, mean=1000.0).to(DEVICE)
    call = moved(call_of(method, 3, False, "none", (6, 3, 4, 5), torch.float32), DEVICE)
    done, expected = fused.forward(x, call), STEP_BY_STEP.forward(x.double(), call)
    assert error(done.statistics[0] / 1000, expected.statistics[0] / 1000) <= 1e-9
    assert error(done.statistics[1], expected.statistics[1]) <= reduction(torch.float32, 120)
    assert error(done.y, expected.y) <= reduction(torch.float32, 120)


def test_only_wanted_gradients() -> None:
    shape = (3, 4, 5, 5)
    call = moved(call_of(RBN(), 4, False, "none", shape, torch.float32), DEVICE)
    x = randn(*shape, seed=1).to(DEVICE)
    done = fused.forward(x, call)
    every = fused.backward(x, x, done.moments, call, Wanted(True, False, (True,) * 5))
    for want in ((True, False, True, False, True), (False,) * 5):
        found = fused.backward(x, x, done.moments, call, Wanted(False, False, want))
        assert found.x is None
        assert found.residual is None
        assert [g is not None for g in found.tensors] == [*want]
        assert all(torch.equal(g, e) for g, e in zip(found.tensors, every.tensors, strict=True) if g is not None)


def test_gradients_have_the_dtypes_of_their_tensors() -> None:
    """Learnable tensors of several dtypes, one of them strided, beside a half input."""
    shape = (3, 4, 5, 5)
    call = call_of(RBN(), 4, False, "none", shape, torch.float32)
    dtypes = (torch.bfloat16, torch.float32, torch.float64, torch.float32, torch.float16)
    strided = torch.stack([call.tensors[1], call.tensors[1]], 1)[:, 0]
    tensors = [t.to(dtype) for t, dtype in zip((call.tensors[0], strided, *call.tensors[2:]), dtypes, strict=True)]
    call = moved(call._replace(tensors=tuple(tensors)), DEVICE)
    x = randn(*shape, seed=1).bfloat16().to(DEVICE)
    same_passes = StepByStep(passes)  # type: ignore[arg-type]
    found = list(zip(both_ways(fused, x, x, call), both_ways(same_passes, x, x, call), strict=True))
    assert tuple(a.dtype for a, _ in found[-5:]) == dtypes
    assert not (wrong := [e for a, b in found if not (e := error(a, b)) <= reduction(b.dtype, 64)]), wrong


@pytest.mark.usefixtures("small")
def test_repeatable() -> None:
    shape = (5, 6, 9, 11)
    call = moved(call_of(RBN(), 6, False, "relu", shape, torch.float32), DEVICE)
    x, dy = (randn(*shape, seed=i).to(DEVICE) for i in (1, 2))
    first, second = (list(both_ways(fused, x, dy, call)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# The interpreter computes with numpy, which warns of what makes NaN.
@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")
def test_nan_where_the_variance_overflows() -> None:
    x = torch.ones(2, 3, 1, 2, dtype=torch.float64, device=DEVICE)
    x[1, 1, 0, 0] = 1e200
    y = fused.forward(x, moved(call_of(BN(), 3, False, "none", x.shape, torch.float64), DEVICE)).y
    assert y.isnan().flatten(2).any(2).any(0).tolist() == [False, True, False]


def test_a_tensor_elsewhere_is_refused() -> None:
    call = call_of(BN(), 3, False, "none", (2, 3, 4, 4), torch.float32)
    call = call._replace(tensors=tuple(t.to("meta") for t in call.tensors))
    with pytest.raises(RuntimeError, match="on meta; move one"):
        fused.forward(randn(2, 3, 4, 4).to(DEVICE), call)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_one_launch_gives_what_backward_takes_its_mask_from(layout: str, dtype: torch.dtype) -> None:
    """Backward computes the output again from the moments, for the sign: it must be the forward's to the bit."""
    shape = (2, 5, 4, 6)
    call = moved(call_of(RBN(), 5, True, "none", shape, torch.float32), DEVICE)
    x = laid(randn(*shape, dtype=dtype), layout).to(DEVICE)
    work = launch.Work(x)
    assert work.whole is not None
    done = fused.forward(x, call)
    assert done.moments is not None
    step = fused._Coefficients(x, call)
    m, v = done.moments.unbind()
    scale, shift = step.forward(work, m, v, (m, v), call.statistics)
    assert torch.equal(done.y, passes.affine(x, m, scale, shift))


@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0])
@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_running_statistics(dtype: torch.dtype, counted: bool, momentum: float) -> None:
    mean, var = (randn(200, seed=i, dtype=torch.float64).abs().to(DEVICE) for i in (1, 2))
    wide = torch.zeros_like(mean), torch.ones_like(var)
    buffers: tuple[torch.Tensor, ...] = tuple(t.clone().to(dtype) for t in wide)
    count = torch.full((), 6, device=DEVICE)
    assert passes.update_running((*buffers, count) if counted else buffers, mean, var, momentum, 1.25)
    assert error(buffers[0], torch.lerp(wide[0], mean, momentum)) <= rounding(dtype)
    assert error(buffers[1], torch.lerp(wide[1], 1.25 * var, momentum)) <= rounding(dtype)
    assert count == 6 + counted


def test_running_statistics_that_it_does_not_move() -> None:
    mean, var = torch.zeros(4, device=DEVICE), torch.ones(4, device=DEVICE)
    strided = torch.ones(4, 2, device=DEVICE)[:, 0]
    for buffers in ((mean, strided), (mean, var, torch.zeros((), device=DEVICE)), (mean, var.to("meta"))):
        assert not passes.update_running(buffers, mean, var + 1, 0.5, 1.0)
    assert mean.eq(0).all()
    assert strided.eq(1).all()


def test_a_layer_moves_its_statistics() -> None:
    x = image().to(DEVICE)
    moved_by = []
    for backend in ("triton", "reference"):
        layer = randomize(cn.RBN2d(4)).to(DEVICE)
        with cn.use_backend(backend):
            layer(x)
        moved_by.append(layer.bn)
    assert error(moved_by[0].running_mean, moved_by[1].running_mean) <= reduction(torch.float32, 60)
    assert error(moved_by[0].running_var, moved_by[1].running_var) <= reduction(torch.float32, 60)
    assert moved_by[0].num_batches_tracked == 1
