from __future__ import annotations

import pytest
import torch

import calibnorm as cn
from calibnorm.nn import LAYERS, layer_type


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("name", cn.methods())
def test_every_method_and_dimension(name, dims):
    layer = cn.norm_layer(name, dims=dims)(4)
    stem = "GhostBN" if name == "ghost" else name.upper()
    assert type(layer) is getattr(cn, f"{stem}{dims}d") is layer_type(name, dims) is LAYERS[name, dims]
    assert layer(torch.randn(2, 4, *[3] * dims)).shape == (2, 4, *[3] * dims)


def test_options_reach_the_layer():
    assert cn.norm_layer("iebn", position="both", noise=(0.8, 0.5))(4).options() == {
        "position": "both",
        "noise": (0.8, 0.5),
    }


@pytest.mark.parametrize(
    ("name", "options", "exception", "message"),
    [
        ("ibn", {}, ValueError, "name='ibn' is not known; choose one of 'bn', 'iebn', 'rbn', 'se'"),
        ("iebn", {"dims": 4}, ValueError, "dims=4 must be 1, 2 or 3"),
        ("iebn", {"position": "alpha"}, ValueError, "position='alpha'"),
        ("iebn", {"restrict": "tanh"}, TypeError, "restrict"),
        ("rbn", {"init": (0.0, -1.0)}, ValueError, "init="),
    ],
)
def test_wrong_options_are_refused_at_once(name, options, exception, message):
    with pytest.raises(exception, match=message):
        cn.norm_layer(name, **options)


def test_looking_for_errors_draws_no_random_numbers():
    torch.manual_seed(0)
    cn.norm_layer("iebn", operator="fc")
    drawn = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(3), drawn)
