"""The fused coefficient step against the generic one, and whole layers through the kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import calibnorm as cn
from calibnorm.methods import BN, IEBN, RBN, Method
from calibnorm.ops import Call, Step
from calibnorm.ops.coefficients import pull_back
from calibnorm.ops.cpu import coefficients as by_hand
from calibnorm.ops.cpu.passes import unavailable
from calibnorm.ops.kernel_methods import kind_of
from cases import gradients, image, randn, randomize
from tolerances import error

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

FUSED_TOLERANCE = 1e-12
"""A few hundred float64 operations, with sums over N in another order."""

METHODS = [
    BN(),
    *(IEBN(position=p, gate_input=g) for p in ("gamma", "beta", "both") for g in ("mean", "standardized")),
    RBN(centering=False, scaling=False),
    RBN(scaling=False, center_stat="std"),
    *(RBN(center_stat=c, scale_stat=s) for c in ("mean", "std") for s in ("mean", "std")),
]


def step(method: Method, channels: int, affine: bool, noise: Any = None) -> tuple[Step, tuple[torch.Tensor, ...]]:
    names = [*(["weight", "bias"] if affine else []), *method.parameters(channels)]
    tensors = tuple(0.3 + randn(channels, seed=30 + i, dtype=torch.float64) for i, _ in enumerate(names))
    return Step(method, tuple(names), 1e-3, noise), tensors


@pytest.mark.parametrize("noise", [None, (-0.8, 0.3)], ids=["quiet", "noise"])
@pytest.mark.parametrize("fixed", [False, True], ids=["batch", "running"])
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("n", [7, 130])  # C keeps what it reads again of up to 128 instances
def test_equals_the_generic_step(n: int, method: Method, affine: bool, fixed: bool, noise: Any) -> None:
    channels = 67  # more than one block of channels, and no multiple of the lanes
    how, tensors = step(method, channels, affine, noise)
    assert kind_of(how.method) is not None
    m, v = (
        randn(n, channels, seed=1, mean=1.0, dtype=torch.float64),
        randn(n, channels, seed=2, dtype=torch.float64).square(),
    )
    v[2, 3] = 0.0
    statistics = (m[0].clone(), v[1] + 0.1) if fixed else None
    sums = (randn(n, channels, seed=3, dtype=torch.float64), randn(n, channels, seed=4, dtype=torch.float64))
    call = Call(how, statistics, tensors)
    forward = [by_hand.coefficients(call, m, v), call.coefficients(m, v)]
    for a, b in zip((*forward[0][:2], *forward[0][2]), (*forward[1][:2], *forward[1][2]), strict=True):
        assert error(a, b) <= FUSED_TOLERANCE
    wanted = (True,) * (1 + len(tensors))
    *ours, _, _ = by_hand.gradients(call, m, v, sums, 12)
    theirs = pull_back(call, m, v, sums, 12, wanted)
    for a, b in zip(ours, (*theirs[:3], *theirs.tensors), strict=True):
        assert b is not None
        assert error(a, b) <= FUSED_TOLERANCE


@pytest.mark.parametrize("method", [IEBN(operator="fc"), IEBN(activation="tanh"), RBN(restrict="softsign")], ids=str)
def test_other_methods_take_the_generic_step(method: Method) -> None:
    assert kind_of(method) is None


def test_the_gate_over_its_whole_range() -> None:
    how, _ = step(IEBN(), 1, False)
    z = torch.linspace(-800, 800, 4001, dtype=torch.float64)[:, None]
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    fixed = (zero, one)
    quiet = how._replace(eps=0.0)
    scale, _, _ = by_hand.coefficients(Call(quiet, fixed, (one, zero)), z, torch.ones_like(z))
    expected = torch.sigmoid(z)
    normal = expected > 1e-300
    assert ((scale - expected).abs() / expected)[normal].max() < 1e-14
    assert scale[~normal].max() < 1e-300


def test_nan_where_the_variance_overflows() -> None:
    how, tensors = step(BN(), 3, True)
    m, v = torch.zeros(2, 3, dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64)
    v[1, 1] = torch.inf
    scale, _, _ = by_hand.coefficients(Call(how, None, tensors), m, v)
    assert scale.isnan().any(0).tolist() == [False, True, False]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("layer_type", [cn.BN2d, cn.IEBN2d, cn.RBN2d], ids=lambda t: t.__name__)
def test_gradcheck(layer_type: Any, layout: Any) -> None:
    layer = randomize(layer_type(4, dtype=torch.float64))
    layer.bn.track_running_stats = False
    x = image(torch.float64, layout=layout).requires_grad_()
    leaves = [x, *layer.parameters()]
    with cn.use_backend("cpu"):
        assert torch.autograd.gradcheck(lambda *_: layer(x), leaves, fast_mode=True)
        assert torch.autograd.gradgradcheck(lambda *_: layer(x), leaves, fast_mode=True)


@pytest.mark.parametrize("residual", [False, True], ids=["relu", "residual and relu"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("layer_type", [cn.IEBN2d, cn.RBN2d], ids=lambda t: t.__name__)
def test_fused_relu_equals_the_composition(layer_type: Any, training: bool, residual: bool) -> None:
    fused = randomize(layer_type(4, dtype=torch.float64, act="relu")).train(training)
    plain = randomize(layer_type(4, dtype=torch.float64)).train(training)
    results = []
    for layer in (fused, plain):
        leaves = {"x": image(torch.float64).requires_grad_(), **dict(layer.named_parameters())}
        extra = None
        if residual:
            extra = leaves["residual"] = image(torch.float64, seed=5).requires_grad_()
        y = layer(leaves["x"], extra)
        if layer is plain:
            y = torch.relu(y)
        results.append([y, *gradients(y, leaves, randn(*y.shape, seed=9, dtype=torch.float64)).values()])
    assert all(error(a, b) <= FUSED_TOLERANCE for a, b in zip(*results, strict=True))
