from __future__ import annotations

import pytest
import torch

import calibnorm as cn
from cases import randn, randomize
from contract import batch, check_functional, check_layer
from oracles.iebn import iebn
from tolerances import ORACLE, error

OPERATORS = ["linear", "identity", "fc"]
POSITIONS = ["gamma", "beta", "both"]
ACTIVATIONS = ["sigmoid", "tanh", "relu", "softmax"]
GATE_INPUTS = ["mean", "standardized"]
REDUCTION = {"fc": {"reduction": 2}}


def tensors(operator: str) -> dict[str, torch.Tensor]:
    shapes = {"weight": (4,), "bias": (4,)}
    if operator == "linear":
        shapes |= {"gate_weight": (4,), "gate_bias": (4,)}
    if operator == "fc":
        shapes |= {"fc1_weight": (2, 4), "fc1_bias": (2,), "fc2_weight": (4, 2), "fc2_bias": (4,)}
    return {name: randn(*shape, seed=i, dtype=torch.float64) for i, (name, shape) in enumerate(shapes.items())}


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gate_input", GATE_INPUTS)
def test_equals_the_equations(operator, position, activation, gate_input):
    options = {"operator": operator, "position": position, "activation": activation, "gate_input": gate_input}
    check_layer(cn.IEBN2d, iebn, options | REDUCTION.get(operator, {}), options)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gate_input", GATE_INPUTS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_function_equals_the_equations(operator, position, activation, gate_input, training):
    options = {"operator": operator, "position": position, "activation": activation, "gate_input": gate_input}
    all_options = options | REDUCTION.get(operator, {})
    check_functional(cn.iebn, iebn, tensors(operator), all_options, options, training=training)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("left_out", [("weight",), ("bias",), ("weight", "bias")], ids="+".join)
def test_function_without_gamma_or_beta(left_out, training):
    given = {name: t for name, t in tensors("linear").items() if name not in left_out}
    check_functional(cn.iebn, iebn, given, training=training)


@pytest.mark.parametrize("layer_type", [cn.IEBN1d, cn.IEBN2d, cn.IEBN3d], ids=lambda t: t.__name__)
@pytest.mark.parametrize("track", [True, False], ids=["track", "no_track"])
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("momentum", [0.3, None])
def test_torch_arguments(layer_type, momentum, affine, track):
    check_layer(layer_type, iebn, momentum=momentum, affine=affine, track=track)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("gate_input", GATE_INPUTS)
def test_input_without_pixels(operator, gate_input):
    options = {"operator": operator, "gate_input": gate_input}
    check_layer(cn.IEBN1d, iebn, options, options, rank2=True)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("noise", [(0.8, 0.5), (0.0, 1.5)], ids=str)
@pytest.mark.parametrize("noise_in", ["always", "train"])
@pytest.mark.parametrize("gate_input", GATE_INPUTS)
def test_constant_noise_attack(position, noise, noise_in, gate_input):
    options = {"position": position, "gate_input": gate_input}
    check_layer(cn.IEBN2d, iebn, options, options, noise=noise, noise_in=noise_in)


def test_function_with_noise():
    for training in (True, False):
        check_functional(cn.iebn, iebn, tensors("linear"), training=training, noise=(0.5, 0.2))


@pytest.mark.parametrize("init", [(0.0, -1.0), (1.0, 0.0), (-1.0, 1.0), [0.5, 2]], ids=str)
def test_initial_values(init):
    """Table 5. A new layer computes Algorithm 1 with exactly these numbers."""
    layer = cn.IEBN2d(4, init=init, dtype=torch.float64)
    assert layer.gate_weight.tolist() == [init[0]] * 4
    assert layer.gate_bias.tolist() == [init[1]] * 4
    p = {"gate_weight": torch.full((4,), init[0]).double(), "gate_bias": torch.full((4,), init[1]).double()}
    assert error(layer(batch(2, 0)), iebn(batch(2, 0), p)[0]) <= ORACLE
    randomize(layer).reset_parameters()
    assert layer.gate_bias.tolist() == [init[1]] * 4


def test_default_initial_values():
    layer = cn.IEBN2d(4)
    assert layer.gate_weight.tolist() == [0.0] * 4
    assert layer.gate_bias.tolist() == [-1.0] * 4


def test_fc_starts_as_linear_layers_do():
    torch.manual_seed(0)
    layer = cn.IEBN2d(64, operator="fc")
    assert layer.fc1_weight.shape == (4, 64)
    assert layer.fc2_weight.shape == (64, 4)
    for fan_in, names in ((64, ("fc1_weight", "fc1_bias")), (4, ("fc2_weight", "fc2_bias"))):
        for name in names:
            bound, size = fan_in**-0.5, layer.get_parameter(name).abs().max()
            assert bound * 0.5 < size <= bound
    assert cn.IEBN2d(3, operator="fc").fc1_weight.shape == (1, 3)


def test_identity_adds_no_parameters():
    assert [name for name, _ in cn.IEBN2d(4, operator="identity").named_parameters()] == ["bn.weight", "bn.bias"]
