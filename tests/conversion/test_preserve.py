"""With preserve=True, a conversion leaves a network's function as it is, or is refused before anything changes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import calibnorm as cn
from calibnorm.nn import CalibratedNorm
from cases import randn
from conversion.helpers import MODELS, convert, norms, output, relative, settle, small, snapshot, statistics

IEBN_OPTIONS = [
    {"position": position, "activation": activation}
    for position in ("gamma", "beta", "both")
    for activation in ("sigmoid", "tanh", "softmax")
]
RBN_OPTIONS = [
    *({"restrict": restrict} for restrict in ("sigmoid", "tanh", "hardsigmoid", "softsign")),
    {"centering": False},
    {"scaling": False},
    {"centering": False, "scaling": False},
    {"center_stat": "std", "scale_stat": "std"},
    {"center_stat": "spatial_mean", "scale_stat": "spatial_std"},
]
FURTHER = [
    ("iebn", {"init": (0.0, 0.3)}),
    ("iebn", {"activation": "relu", "init": (0.0, 0.5)}),
    ("rbn", {"init": (0.0, 0.0, -0.7)}),
    ("iebn", {"noise": (0.8, 0.5), "noise_in": "train"}),
    ("bn", {}),
]
ALL = [*(("iebn", o) for o in IEBN_OPTIONS), *(("rbn", o) for o in RBN_OPTIONS), *FURTHER]
EXACT = 1e-10
"""For float64: what a wrong formula cannot meet, and 50 layers of rounding can."""


# Method and network do not know of each other: in turn here, and every pair nightly.
REAL = [
    pytest.param(name, method, marks=[] if method == ("iebn", "rbn")[i % 2] else pytest.mark.nightly)
    for i, name in enumerate(MODELS)
    for method in ("iebn", "rbn")
]


@torch.no_grad()
@pytest.mark.parametrize(("name", "method"), REAL)
def test_real_networks_compute_the_same(name, method):
    """In eval and in a training forward; float32 to 1e-5, or to what rounding alone does to the plain network."""
    factory, shape, count = MODELS[name]
    torch.manual_seed(0)
    plain, x = settle(factory(), shape), randn(*shape, seed=5, dtype=torch.float64)
    float32 = output(plain, x.float())
    converted = convert(copy.deepcopy(plain), method, preserve=True)
    layers = [m for m in converted.modules() if isinstance(m, CalibratedNorm)]
    assert len(layers) == len(norms(plain)) == count
    assert {layer.method_type.name for layer in layers} == {method}
    got = output(converted, x.float())

    plain.double()
    expected = output(plain, x)
    assert relative(got, float32) <= max(1e-5, 4 * relative(float32.double(), expected))
    converted = convert(copy.deepcopy(plain), method, preserve=True)
    assert relative(output(converted, x), expected) <= EXACT
    for net in (plain, converted):
        torch.manual_seed(1)  # dropout and stochastic depth
        net.train()
    expected = output(plain, x)
    torch.manual_seed(1)
    assert relative(output(converted, x), expected) <= EXACT
    for got, wanted in zip(statistics(converted), statistics(plain), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(("method", "options"), ALL, ids=lambda v: v if isinstance(v, str) else str(v))
def test_every_option_with_a_constant_gate(method, options):
    plain, x = small(), randn(4, 3, 5, 5, seed=5)
    converted = convert(copy.deepcopy(plain), method, preserve=True, **options)
    assert relative(converted(x), plain(x)) <= 1e-5
    assert all(layer.compensated for layer in norms(converted).values())
    if "noise" not in options:
        assert relative(converted.train()(x), plain.train()(x)) <= 1e-5
        torch.testing.assert_close(converted.bn1.bn.running_var, plain.bn1.running_var)


@pytest.mark.parametrize("method", ["iebn", "rbn"])
def test_gradients_reach_the_rest_of_the_network_as_before(method):
    plain, x = small().double(), randn(4, 3, 5, 5, seed=5, dtype=torch.float64)
    converted = convert(copy.deepcopy(plain), method, preserve=True)
    for net in (plain, converted):
        net.train()(x).square().sum().backward()
    for name in ("conv1", "fc"):
        torch.testing.assert_close(converted.get_submodule(name).weight.grad, plain.get_submodule(name).weight.grad)
    assert all(gate.grad is not None for layer in norms(converted).values() for gate in layer.gates().values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    """gamma takes the gate back with one rounding of its own dtype."""
    plain, x = small().to(dtype), randn(4, 3, 5, 5, seed=5, dtype=dtype)
    converted = convert(copy.deepcopy(plain), "iebn", preserve=True, position="both")
    gate = torch.sigmoid(torch.tensor(-1.0, dtype=torch.float64))
    assert torch.equal(converted.bn1.weight, (plain.bn1.weight.double() / gate).to(dtype))
    assert relative(converted(x).double(), plain(x).double()) <= 20 * torch.finfo(dtype).eps


def test_without_preserve_gamma_stays_and_the_function_changes():
    plain, x = small(), randn(4, 3, 5, 5, seed=5)
    with pytest.warns(UserWarning, match="has been trained.*preserve=True keeps the function"):
        converted = cn.convert(copy.deepcopy(plain), "iebn")
    assert torch.equal(converted.bn1.weight, plain.bn1.weight)
    assert relative(converted(x), plain(x)) > 0.01
    assert not any(layer.compensated for layer in norms(converted).values())


@pytest.mark.parametrize(("method", "options"), [("gn", {}), ("sn", {}), ("iebn", {"operator": "identity"})])
def test_the_warning_offers_preserve_only_where_it_helps(method, options):
    with pytest.warns(UserWarning, match=f"trained, .*: '{method}' does not start as BatchNorm, and no preserve="):
        cn.convert(small(), method, **options)


@pytest.mark.parametrize("method", ["ghost", "brn"])
def test_what_is_batchnorm_in_eval_gives_no_warning(method, recwarn):
    plain, x = small(), randn(4, 3, 5, 5, seed=5)
    assert relative(cn.convert(copy.deepcopy(plain), method).eval()(x), plain.eval()(x)) <= 1e-6
    assert not recwarn.list


@pytest.mark.parametrize("method", ["iebn", "rbn"])
def test_the_warning_is_only_for_what_changes(method, recwarn):
    cn.convert(small(), method, preserve=True)
    cn.convert(small(), "bn")
    cn.convert(torch.nn.Sequential(nn.BatchNorm2d(3)), method)
    again = convert(small(), method)
    cn.convert(again, method)
    assert not recwarn.list


REFUSED = [
    ("iebn", {"operator": "identity"}, "initial gate that is a constant other than 0"),
    ("iebn", {"operator": "fc"}, "initial gate that is a constant other than 0"),
    ("iebn", {"activation": "relu"}, "initial gate that is a constant other than 0"),
    ("iebn", {"init": (0.1, -1.0)}, "initial gate that is a constant other than 0"),
    ("iebn", {"activation": "tanh", "init": (0.0, 0.0)}, "initial gate that is a constant other than 0"),
    ("rbn", {"init": (0.1, 0.0, 1.0)}, "initial gate that is a constant other than 0"),
    ("rbn", {"init": (0.0, 0.1, 1.0)}, "initial gate that is a constant other than 0"),
    ("rbn", {"restrict": "softsign", "init": (0.0, 0.0, 0.0)}, "initial gate that is a constant other than 0"),
    ("rbn", {"noise": (0.8, 0.5)}, "under noise"),
    ("bn", {"noise": (0.8, 0.5)}, "under noise"),
    ("bn", {"gamma_init": 0.5}, "with gamma_init"),
    ("iebn", {"act": "relu"}, "with act="),
]


@pytest.mark.parametrize(("method", "options", "message"), REFUSED, ids=lambda v: v if isinstance(v, str) else str(v))
def test_what_cannot_be_preserved_is_refused_before_anything_changes(method, options, message):
    net = small()
    before = snapshot(net)
    with pytest.raises(ValueError, match=f"preserve=True .*{message}"):
        cn.convert(net, method, preserve=True, **options)
    assert snapshot(net) == before


def no_affine(net):
    net.downsample[1] = nn.BatchNorm2d(6, affine=False)


def parametrized(net):
    parametrize.register_parametrization(net.downsample[1], "weight", nn.Identity())


def shared_gamma(net):
    net.downsample[1].weight = net.layer1[1].weight


@pytest.mark.parametrize(
    ("change", "message"),
    [(no_affine, r"affine=False"), (parametrized, "parametrized"), (shared_gamma, "shares its weight")],
)
def test_a_gamma_that_cannot_be_divided_is_refused(change, message):
    """The layer is named, the remedy too, and exclude= is one."""
    net = small()
    change(net)
    before = snapshot(net)
    with pytest.raises(ValueError, match=rf"1: preserve=True divides weight.*{message}.*exclude="):
        cn.convert(net, "iebn", preserve=True)
    assert snapshot(net) == before
    expected, x = copy.deepcopy(net), randn(4, 3, 5, 5, seed=5)
    converted = cn.convert(net, "iebn", preserve=True, exclude=["downsample*", "layer1*"])
    assert relative(converted(x), expected(x)) <= 1e-5


def test_beta_of_a_batchnorm_without_bias():
    """There is nothing for the gate of beta to multiply: position="both" preserves, "beta" makes no sense."""
    if "bias" not in nn.BatchNorm2d.__init__.__annotations__:
        pytest.skip("this torch has no BatchNorm without beta")
    plain, x = small(bias=False), randn(4, 3, 5, 5, seed=5)
    converted = convert(copy.deepcopy(plain), "iebn", preserve=True, position="both")
    assert relative(converted(x), plain(x)) <= 1e-5
    with pytest.raises(ValueError, match=r"bn1: iebn\(position='beta'\) gates beta, which this layer does not have"):
        cn.convert(plain, "iebn", position="beta")


def test_centering_alone_preserves_without_affine():
    """Its initial gate is 1: there is nothing to divide."""
    plain, x = small(affine=False), randn(4, 3, 5, 5, seed=5)
    converted = convert(copy.deepcopy(plain), "rbn", scaling=False, preserve=True)
    assert relative(converted(x), plain(x)) <= 1e-5


@pytest.mark.parametrize(
    ("method", "options", "without"),
    [
        ("se", {}, ()),
        ("se", {"reduction": 4}, ()),
        ("iebn", {"operator": "identity"}, ("operator",)),
        ("iebn", {"position": "both", "init": (0.5, -1.0)}, ("position", "init")),
        ("iebn", {"over": "gn"}, ("over",)),
        ("rbn", {"init": (0.0, 0.5, 1.0)}, ("init",)),
    ],
)
def test_the_refusal_names_options_that_were_given_and_their_absence_helps(method, options, without):
    with pytest.raises(ValueError, match="preserve=True needs an initial gate") as caught:
        convert(small(), method, preserve=True, include="*", **options)
    advice = "use preserve=False" + (f", or leave out {' and '.join(f'{o}=' for o in without)}" if without else "")
    assert str(caught.value).endswith(advice)
    convert(small(), method, preserve=False, include="*", **options)
    if without:
        rest = {name: value for name, value in options.items() if name not in without}
        convert(small(), method, preserve=True, include="*", **rest)


def test_gates_of_a_trained_network_are_in_units_of_the_standardized_feature():
    """Unless the unit is given, or the layers have theirs already: what is there stays."""
    net = convert(small(), "iebn", preserve=True)
    assert {layer.options()["gate_input"] for layer in norms(net).values()} == {"standardized"}
    before = snapshot(net)
    for preserve in (True, False):
        convert(net, "iebn", preserve=preserve)
        assert snapshot(net) == before
    papers = convert(small(), "iebn", preserve=True, gate_input="mean")
    before = snapshot(papers)
    assert all("gate_input" not in layer.options() for layer in norms(papers).values())
    convert(papers, "iebn", preserve=True)
    assert snapshot(papers) == before
    assert all("gate_input" not in layer.options() for layer in norms(convert(small(), "iebn")).values())
