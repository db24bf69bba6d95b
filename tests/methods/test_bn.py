from __future__ import annotations

import pytest
import torch

import calibnorm as cn
from cases import randomize
from contract import batch, check_layer
from oracles.bn import bn
from tolerances import ORACLE, error


@pytest.mark.parametrize("layer_type", [cn.BN1d, cn.BN2d, cn.BN3d], ids=lambda t: t.__name__)
@pytest.mark.parametrize("track", [True, False], ids=["track", "no_track"])
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("momentum", [0.3, None])
def test_equals_the_equations(layer_type, momentum, affine, track):
    check_layer(layer_type, bn, momentum=momentum, affine=affine, track=track)


def test_input_without_pixels():
    check_layer(cn.BN1d, bn, rank2=True)


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("noise", [(0.8, 0.5), (0.0, 1.5), (-2.0, 0.0)], ids=str)
@pytest.mark.parametrize("noise_in", ["always", "train"])
def test_constant_noise_attack(noise, noise_in, affine):
    check_layer(cn.BN2d, bn, noise=noise, noise_in=noise_in, affine=affine)


@pytest.mark.parametrize("training", [True, False])
def test_equals_torch(training):
    """The oracle and torch agree too, so that an error that oracle and library share would show."""
    ours, theirs = (randomize(t(4, dtype=torch.float64)).train(training) for t in (cn.BN2d, torch.nn.BatchNorm2d))
    theirs.load_state_dict(ours.bn.state_dict())
    for seed in range(3):
        x = batch(2, seed)
        assert error(ours(x), theirs(x)) <= ORACLE
    for name, buffer in theirs.named_buffers():
        assert error(ours.bn.get_buffer(name), buffer) <= ORACLE


def test_gamma_init():
    layer = cn.BN2d(4, gamma_init=0.25)
    assert layer.weight.tolist() == [0.25] * 4
    randomize(layer).reset_parameters()
    assert layer.weight.tolist() == [0.25] * 4
    assert layer.bn.running_var.tolist() == [1.0] * 4
