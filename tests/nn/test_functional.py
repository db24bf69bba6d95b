"""What cn.iebn and cn.rbn refuse: every message names the function, the argument, the value and the remedy."""

from __future__ import annotations

import pytest
import torch

import calibnorm as cn
from cases import image, randn

C = torch.ones(4)
BAD = torch.ones(3)
IEBN = {"gate_weight": C, "gate_bias": C}
RBN = {"center_weight": C, "scale_weight": C, "scale_bias": C}
FC = {"fc1_weight": torch.ones(1, 4), "fc1_bias": torch.ones(1), "fc2_weight": torch.ones(4, 1), "fc2_bias": C}
FUNCTIONS = [(cn.iebn, IEBN), (cn.rbn, RBN)]
each_function = pytest.mark.parametrize(("function", "gates"), FUNCTIONS, ids=["iebn", "rbn"])

SHARED = [
    ({"input": [1.0]}, TypeError, "input must be a Tensor, not list"),
    ({"input": image().long()}, TypeError, "dtype torch.int64"),
    ({"input": torch.ones(4)}, ValueError, r"1 dimensions, shape \(4,\); expected at least 2"),
    ({"eps": 0.0}, ValueError, "eps=0.0 must be positive, such as 1e-5"),
    ({"eps": -1.0, "training": False}, ValueError, "eps=-1.0 must be positive"),
    ({"momentum": 1.5}, ValueError, r"momentum=1.5 must lie in \[0, 1\]"),
    ({"momentum": None}, ValueError, "momentum=None needs a count of batches, which only layers keep"),
    ({"running_mean": BAD}, ValueError, r"running_mean has shape \(3,\); expected \(4,\)"),
    ({"running_var": BAD}, ValueError, r"running_var has shape \(3,\); expected \(4,\)"),
    ({"running_mean": None}, ValueError, "running_mean and running_var must be given together"),
    (
        {"running_mean": None, "running_var": None, "training": False},
        ValueError,
        "must be given when training is False",
    ),
    ({"weight": BAD}, ValueError, r"weight has shape \(3,\); expected \(4,\)"),
    ({"bias": BAD}, ValueError, r"bias has shape \(3,\); expected \(4,\)"),
    ({"noise": (0, 0)}, ValueError, r"noise=\(0, 0\) would erase the features; for no noise pass noise=None"),
    ({"input": torch.ones(1, 4, 1, 1)}, ValueError, "one value per channel.*larger batch"),
]
OWN = [
    (cn.iebn, {"gate_weight": C}, ValueError, "gate_bias is missing; pass a tensor of shape"),
    (cn.iebn, {"gate_weight": BAD, "gate_bias": C}, ValueError, r"gate_weight has shape \(3,\); expected \(4,\)"),
    (cn.iebn, {**IEBN, "operator": "identity"}, ValueError, "gate_weight was given, but .*identity.* pass None"),
    (
        cn.iebn,
        {**FC, "operator": "fc", "reduction": 2},
        ValueError,
        r"fc1_weight has shape \(1, 4\); expected \(2, 4\)",
    ),
    (cn.iebn, {**IEBN, "operator": "conv"}, ValueError, "operator='conv' is not known; choose one of 'linear'"),
    (
        cn.iebn,
        {**IEBN, "position": "beta"},
        ValueError,
        r"iebn\(position='beta'\) gates beta, and there is none: bias is None; use position='gamma'",
    ),
    (cn.rbn, {"scale_weight": C}, ValueError, "scale_weight and scale_bias must be given together"),
    (cn.rbn, {**RBN, "restrict": "relu"}, ValueError, "restrict='relu' is not known; choose one of 'sigmoid'"),
    (cn.rbn, {**RBN, "center_weight": BAD}, ValueError, r"center_weight has shape \(3,\); expected \(4,\)"),
]


@each_function
@pytest.mark.parametrize(("wrong", "exception", "message"), SHARED, ids=[m for *_, m in SHARED])
def test_errors(function, gates, wrong, exception, message):
    mean, var = torch.zeros(4), torch.ones(4)
    arguments = {"input": image(), "running_mean": mean, "running_var": var, "training": True, **gates, **wrong}
    with pytest.raises(exception, match=message):
        function(**arguments)
    assert torch.equal(mean, torch.zeros(4))
    assert torch.equal(var, torch.ones(4))


@pytest.mark.parametrize(("function", "given", "exception", "message"), OWN, ids=[m for *_, m in OWN])
def test_errors_of_a_method(function, given, exception, message):
    with pytest.raises(exception, match=message):
        function(image(), None, None, training=True, **given)


@each_function
def test_messages_name_the_function(function, gates):
    with pytest.raises(ValueError, match=f"calibnorm.{function.__name__}: weight"):
        function(image(), None, None, BAD, training=True, **gates)


@each_function
def test_statistics_move_in_training_only(function, gates):
    mean, var = torch.zeros(4), torch.ones(4)
    function(image(), mean, var, **gates)
    assert torch.equal(mean, torch.zeros(4))
    function(image(), mean, var, training=True, momentum=1.0, **gates)
    assert not torch.equal(mean, torch.zeros(4))
    assert not torch.equal(var, torch.ones(4))


@each_function
def test_eps_zero_is_legal_with_given_statistics(function, gates):
    assert function(image(), torch.zeros(4), torch.ones(4), eps=0.0, **gates).isfinite().all()


@each_function
def test_training_without_statistics_equals_training_with_them(function, gates):
    with_statistics = function(image(), torch.zeros(4), torch.ones(4), training=True, **gates)
    assert torch.equal(function(image(), None, None, training=True, **gates), with_statistics)


@pytest.mark.parametrize("layer_type", [cn.IEBN2d, cn.RBN2d], ids=lambda t: t.__name__)
def test_layer_and_function_are_one(layer_type):
    layer = layer_type(4)
    function = {cn.IEBN2d: cn.iebn, cn.RBN2d: cn.rbn}[layer_type]
    with torch.no_grad():
        for i, p in enumerate(layer.parameters()):
            p.copy_(randn(4, seed=i))
    mean, var = torch.zeros(4), torch.ones(4)
    y = function(image(), mean, var, layer.weight, layer.bias, True, **layer.gates())
    assert torch.equal(layer(image()), y)
    assert torch.equal(layer.bn.running_mean, mean)
    assert torch.equal(layer.bn.running_var, var)
