"""Any network, converted by any method: it is kept and rebuilt as promised, and a refusal changes nothing."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from hypothesis import event, given, note, settings
from hypothesis import strategies as st
from torch import nn

import calibnorm as cn
from cases import randomize
from drawn import randn
from properties.drawing import methods

CHANNELS = 4
CASES = max(60, settings.default.max_examples // 10)
"""A network takes ten times as long as a layer."""


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Module, int]:
    """Draw a network of one to three blocks in float64, and the rank of its images."""
    dims = draw(st.integers(1, 3))
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    norm: Any = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
    layers: list[nn.Module] = []
    for number in range(draw(st.integers(1, 3))):
        arguments = {
            "eps": draw(st.sampled_from([1e-5, 1e-3])),
            "momentum": draw(st.sampled_from([0.1, None])),
            "affine": draw(st.sampled_from([True, True, True, False])),
        }
        layers += [convolution(3 if number == 0 else CHANNELS, CHANNELS, 3, padding=1, bias=False)]
        layers += [norm(CHANNELS, **arguments), nn.ReLU()]
    network = nn.Sequential(*layers).double()
    torch.manual_seed(draw(st.integers(0, 99)))
    for layer in network:
        if isinstance(layer, norm):
            randomize(layer)
    return network.eval(), dims


@pytest.mark.filterwarnings("ignore:the network has been trained")
@settings(max_examples=CASES)
@given(networks(), methods(CHANNELS, 4), st.booleans())
def test_a_network_is_kept_rebuilt_and_brought_back(
    drawn: tuple[nn.Module, int], method: tuple[str, dict[str, Any]], preserve: bool
) -> None:
    (network, dims), (name, options) = drawn, method
    note(f"{network} {name} {options}")
    plain, x = copy.deepcopy(network), randn(4, 3, *[5] * dims, dtype=torch.float64)
    expected = plain(x)
    try:
        cn.convert(network, name, preserve=preserve, **options)
    except (ValueError, TypeError) as error:
        event("refused")
        note(str(error))
        assert [type(module) for module in network.modules()] == [type(module) for module in plain.modules()]
        assert torch.equal(network(x), expected)
        return
    event(f"{name}, {'kept' if preserve else 'not kept'}")
    y = network(x)
    if preserve:
        torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
        back = cn.revert(copy.deepcopy(network))
        torch.testing.assert_close(back(x), expected, rtol=1e-9, atol=1e-9)
        assert [type(module) for module in back.modules()] == [type(module) for module in plain.modules()]
    again = cn.convert(copy.deepcopy(plain).train(), json.loads(json.dumps(cn.plan(network)))).eval()
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(x), y)
