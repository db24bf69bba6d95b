from __future__ import annotations

import inspect
import re
from dataclasses import fields

import pytest
import torch
from torch import nn

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
        (
            "iebn",
            {"restrict": "tanh"},
            TypeError,
            "^IEBN2d: 'restrict' is not an option of 'iebn', which takes operator, position, .*, act; 'rbn' has it$",
        ),
        ("bn", {"init": (0.0, -1.0)}, TypeError, "'init' is not an option of 'bn', .*; 'iebn' and 'rbn' have it$"),
        ("rbn", {"centring": True}, TypeError, "'centring' is not an option of 'rbn', which takes centering, .*, act$"),
        ("rbn", {"init": (0.0, -1.0)}, ValueError, "init="),
    ],
)
def test_wrong_options_are_refused_at_once(name, options, exception, message):
    with pytest.raises(exception, match=message):
        cn.norm_layer(name, **options)


@pytest.mark.parametrize(
    "refuses", [lambda **o: cn.IEBN2d(8, **o), lambda **o: cn.convert(nn.BatchNorm2d(8), "iebn", **o)]
)
def test_an_option_of_another_method_is_named_with_that_method(refuses):
    with pytest.raises(TypeError, match=r"'centering' is not an option of 'iebn', .*; 'rbn' has it$"):
        refuses(centering=False)


@pytest.mark.parametrize("layer", LAYERS.values())
def test_layers_show_their_arguments(layer):
    """What `help` and editors read, although the constructors are wrapped."""
    arguments = inspect.signature(layer).parameters
    assert list(arguments)[:3] == ["num_features", "eps", "momentum"]
    assert list(arguments)[-3:] == ["noise", "noise_in", "act"]
    # The options, their defaults and their types stand at the layer for readers and type checkers: those of the method.
    options = {name: (a.default, a.annotation) for name, a in list(arguments.items())[7:-3] if name != "over"}
    assert options == {option.name: (option.default, option.type) for option in fields(layer.method_type)}


@pytest.mark.parametrize("layer", LAYERS.values())
def test_layers_describe_all_arguments_for_their_rank(layer):
    """The text stands once a method, and `help` of each rank has it whole."""
    text = inspect.getdoc(layer)
    described = re.findall(r"^    (\w+):", text.partition("Args:")[2].partition("Raises:")[0], re.MULTILINE)
    assert described == list(inspect.signature(layer).parameters)
    assert re.search(rf"cn\.{layer.__name__}\(", text)
    assert {1: "(N, C, L)", 2: "(N, C, H, W)", 3: "(N, C, D, H, W)"}[layer.dims] in text
    assert not {f"{stem}{dims}d" for stem in ("BN", "Norm") for dims in {1, 2, 3} - {layer.dims}} & set(text.split())
    assert "float32 or wider" in text
    assert ("neither used nor moved" in text) is not layer.method_type().batch_statistics


def test_a_class_of_one_s_own_keeps_its_constructor_and_its_text():
    class Mine(cn.IEBN2d):
        """Mine."""

        def __init__(self, channels):
            super().__init__(channels, operator="identity")

    assert list(inspect.signature(Mine).parameters) == ["channels"]
    assert inspect.getdoc(Mine) == "Mine."
    assert Mine(4).options() == {"operator": "identity"}
    with pytest.raises(TypeError, match=r"^Other: 'operatr' is not an option of 'iebn', which takes operator, .*over"):
        type("Other", (cn.IEBN2d,), {})(4, operatr="fc")


def test_looking_for_errors_draws_no_random_numbers():
    torch.manual_seed(0)
    cn.norm_layer("iebn", operator="fc")
    drawn = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(3), drawn)
