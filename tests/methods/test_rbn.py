from __future__ import annotations

import pytest
import torch

import calibnorm as cn
from cases import randn, randomize
from contract import batch, check_functional, check_layer
from oracles.rbn import rbn
from tolerances import ORACLE, error

STATISTICS = ["mean", "std", "spatial_mean", "spatial_std"]
RESTRICTIONS = ["sigmoid", "tanh", "hardsigmoid", "softsign"]


def tensors(centering: bool = True, scaling: bool = True, affine: bool = True) -> dict[str, torch.Tensor]:
    names = ["weight", "bias"] * affine + ["center_weight"] * centering + ["scale_weight", "scale_bias"] * scaling
    return {name: randn(4, seed=i, dtype=torch.float64) for i, name in enumerate(names)}


@pytest.mark.parametrize("center_stat", STATISTICS)
@pytest.mark.parametrize("scale_stat", STATISTICS)
def test_equals_the_equations(center_stat, scale_stat):
    options = {"center_stat": center_stat, "scale_stat": scale_stat}
    check_layer(cn.RBN2d, rbn, options, options)


@pytest.mark.parametrize("restrict", RESTRICTIONS)
@pytest.mark.parametrize("scale_stat", ["mean", "spatial_std"])
def test_restrict_functions(restrict, scale_stat):
    options = {"restrict": restrict, "scale_stat": scale_stat}
    check_layer(cn.RBN2d, rbn, options, options)


@pytest.mark.parametrize("centering", [True, False], ids=["centering", "no_centering"])
@pytest.mark.parametrize("scaling", [True, False], ids=["scaling", "no_scaling"])
@pytest.mark.parametrize("statistic", STATISTICS)
def test_parts(centering, scaling, statistic):
    """Table 2. A calibration that is off has no tensors, and its statistic does not matter."""
    options = {"center_stat": statistic, "scale_stat": statistic}
    check_layer(cn.RBN2d, rbn, options | {"centering": centering, "scaling": scaling}, options)
    names = {name for name, _ in cn.RBN2d(4, centering=centering, scaling=scaling).named_parameters()}
    assert names == {
        "bn.weight",
        "bn.bias",
        *({"center_weight"} if centering else ()),
        *({"scale_weight", "scale_bias"} if scaling else ()),
    }


@pytest.mark.parametrize("center_stat", STATISTICS)
@pytest.mark.parametrize("scale_stat", STATISTICS)
@pytest.mark.parametrize("restrict", RESTRICTIONS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_function_equals_the_equations(center_stat, scale_stat, restrict, training):
    options = {"center_stat": center_stat, "scale_stat": scale_stat, "restrict": restrict}
    check_functional(cn.rbn, rbn, tensors(), options, options, training=training)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("centering", [True, False])
@pytest.mark.parametrize("scaling", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_function_with_fewer_tensors(centering, scaling, affine, training):
    check_functional(cn.rbn, rbn, tensors(centering, scaling, affine), training=training)


@pytest.mark.parametrize("layer_type", [cn.RBN1d, cn.RBN2d, cn.RBN3d], ids=lambda t: t.__name__)
@pytest.mark.parametrize("track", [True, False], ids=["track", "no_track"])
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("momentum", [0.3, None])
def test_torch_arguments(layer_type, momentum, affine, track):
    check_layer(layer_type, rbn, momentum=momentum, affine=affine, track=track)


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("statistic", ["spatial_mean", "spatial_std"])
@pytest.mark.parametrize("layer_type", [cn.RBN1d, cn.RBN3d], ids=lambda t: t.__name__)
def test_spatial_statistics_in_other_dimensions(layer_type, statistic, affine):
    options = {"center_stat": statistic, "scale_stat": statistic}
    check_layer(layer_type, rbn, options, options, affine=affine, momentum=None)


@pytest.mark.parametrize("statistic", ["mean", "spatial_mean", "spatial_std"])
def test_input_without_pixels(statistic):
    """The deviation within a plane of one value is 0, with a derivative of 0 here and none in the equations."""
    options = {"center_stat": statistic, "scale_stat": statistic}
    check_layer(cn.RBN1d, rbn, options, options, rank2=True)


ATTACKS = [
    (statistic, noise)
    for statistic in STATISTICS
    for noise in ((0.8, 0.5), (-0.5, 0.2), (0.0, 1.5))
    if noise[0] or not statistic.endswith("std")  # X_s is constant then, and the equations' sqrt has no derivative
]


@pytest.mark.parametrize(("statistic", "noise"), ATTACKS, ids=str)
@pytest.mark.parametrize("noise_in", ["always", "train"])
def test_constant_noise_attack(statistic, noise, noise_in):
    options = {"center_stat": statistic, "scale_stat": statistic}
    check_layer(cn.RBN2d, rbn, options, options, noise=noise, noise_in=noise_in)


@pytest.mark.parametrize("statistic", ["std", "spatial_std"])
def test_constant_plane(statistic):
    """Where a deviation is 0 its derivative counts as 0: that of the same layer with the statistic held fixed."""
    layer = randomize(cn.RBN2d(4, center_stat=statistic, scale_stat=statistic, dtype=torch.float64))
    x = batch(2, 0)
    x[0] = 1.5  # constant over pixels and over channels
    x.requires_grad_()
    y = layer(x)
    assert y.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(y.square().sum(), [x, *layer.parameters()]))


@pytest.mark.parametrize("init", [(0.0, 0.0, 1.0), (0.5, -0.25, 2.0)], ids=str)
def test_initial_values(init):
    """Section 4.1. A new layer computes Eq. 12 with exactly these numbers."""
    layer = cn.RBN2d(4, init=init, dtype=torch.float64)
    names = ("center_weight", "scale_weight", "scale_bias")
    p = {name: torch.full((4,), value, dtype=torch.float64) for name, value in zip(names, init, strict=True)}
    assert all(torch.equal(layer.get_parameter(name), p[name]) for name in names)
    assert error(layer(batch(2, 0)), rbn(batch(2, 0), p)[0]) <= ORACLE
    randomize(layer).reset_parameters()
    assert all(torch.equal(layer.get_parameter(name), p[name]) for name in names)


def test_default_initial_values():
    layer = cn.RBN2d(2)
    assert [layer.center_weight.tolist(), layer.scale_weight.tolist(), layer.scale_bias.tolist()] == [
        [0.0, 0.0],
        [0.0, 0.0],
        [1.0, 1.0],
    ]
