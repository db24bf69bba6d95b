"""Back to BatchNorm: exact where a gate is constant, refused where it is not; and from one method to another."""

from __future__ import annotations

import copy
import itertools

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d, convert_splitbn_model, freeze_batch_norm_2d
from timm.layers import convert_sync_batchnorm as timm_sync
from torch import nn

import calibnorm as cn
from cases import randn
from conversion.helpers import MODELS, convert, norms, output, randomize_gates, relative, settle, small, snapshot

X = (4, 3, 5, 5)
EXACT = [
    ("iebn", {}),
    ("iebn", {"preserve": True, "position": "both"}),
    ("iebn", {"position": "beta", "activation": "tanh"}),
    ("iebn", {"activation": "relu"}),
    ("iebn", {"activation": "softmax", "position": "both"}),
    ("iebn", {"noise": (0.8, 0.5)}),
    ("iebn", {"noise": (0.8, 0.5), "position": "beta"}),
    ("iebn", {"noise": (1.0, 0.3), "position": "both"}),
    ("iebn", {"act": "relu", "noise": (0.8, 0.0)}),
    ("rbn", {}),
    ("rbn", {"preserve": True, "restrict": "softsign"}),
    ("rbn", {"scaling": False, "noise": (0.5, 0.2)}),
    ("rbn", {"centering": False, "scale_stat": "std", "noise": (0.5, 0.2)}),
    ("rbn", {"center_stat": "spatial_mean", "scale_stat": "spatial_std"}),
    ("bn", {"noise": (-0.8, 0.5), "act": "relu"}),
    ("bn", {"gamma_init": 0.5}),
]
NEED_GAMMA = ("preserve", "gamma_init")
BARE = [(m, o) for m, o in EXACT if not o.keys() & set(NEED_GAMMA) and o.get("position") != "beta"]
"""What BatchNorms without gamma and beta can be converted with."""


@torch.no_grad()
def train_constants(net):
    """Move gamma, beta and those gates that keep the gate constant."""
    for layer in norms(net).values():
        for name, p in layer.named_parameters():
            if name in ("gate_bias", "scale_bias", "bn.weight", "bn.bias"):
                p.add_(torch.linspace(-0.3, 0.4, p.numel()))


@pytest.mark.parametrize(
    ("affine", "method", "options"),
    [*((True, *case) for case in EXACT), *((False, *case) for case in BARE)],
    ids=str,
)
def test_constant_gates_and_noise_fold_exactly(affine, method, options):
    net, x = convert(small(affine=affine).double(), method, **options), randn(*X, seed=5, dtype=torch.float64)
    train_constants(net)
    net.bn1.train()
    expected = [copy.deepcopy(net).train(mode)(x) for mode in (False, True)]
    plain = cn.revert(net)
    kind = cn.BN2d if "act" in options else nn.BatchNorm2d
    assert [type(layer) for layer in norms(plain).values()] == [kind] * 3
    assert [layer.training for layer in norms(plain).values()] == [True, False, False]
    for mode, y in zip((False, True), expected, strict=True):
        assert relative(copy.deepcopy(plain).train(mode)(x), y) <= 1e-12
    assert cn.revert(plain) is plain
    assert relative(plain.eval()(x), expected[0]) <= 1e-12


def test_the_state_of_a_reverted_network_is_that_of_a_plain_one():
    plain = small()
    net = cn.revert(convert(copy.deepcopy(plain), "iebn", preserve=True))
    assert net.state_dict().keys() == plain.state_dict().keys()
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, plain.state_dict()[name])
    assert net.bn1.weight is not plain.bn1.weight


def test_gamma_stays_the_object_that_an_optimizer_holds():
    net = small()
    gamma = net.bn1.weight
    convert(net, "iebn", position="both")
    convert(net, "rbn")
    assert net.bn1.weight is gamma
    assert cn.revert(net).bn1.weight is gamma


NOT_CONSTANT = [
    ("iebn", {"init": (0.1, -1.0)}, "its gate depends on the input"),
    ("iebn", {"operator": "identity"}, "its gate depends on the input"),
    ("iebn", {"operator": "fc"}, "its gate depends on the input"),
    ("rbn", {"init": (0.1, 0.0, 1.0)}, "its gate depends on the input"),
    ("rbn", {"init": (0.0, 0.1, 1.0)}, "its gate depends on the input"),
    ("iebn", {"noise": (0.8, 0.5), "noise_in": "train"}, "its noise is on in training alone"),
]


@pytest.mark.parametrize(("method", "options", "why"), NOT_CONSTANT, ids=lambda v: v if isinstance(v, str) else str(v))
def test_what_is_not_constant_is_refused_whole(method, options, why):
    """One such layer, the last: the first two must not have been reverted when it is found."""
    net = convert(convert(small(), "iebn", exclude="down*"), method, include="down*", **options)
    before = snapshot(net)
    with pytest.raises(ValueError, match=rf"downsample\.1 \(\w+2d\): {why}, .* revert with lossy=True"):
        cn.revert(net)
    with pytest.raises(ValueError, match=rf"downsample\.1 is a \w+2d that cannot turn into another method.*{why}"):
        cn.convert(net, "bn")
    assert snapshot(net) == before
    assert all(type(layer) is nn.BatchNorm2d for layer in norms(cn.revert(net, lossy=True)).values())


AVERAGE_GATES = [
    (cn.IEBN2d, {}),
    (cn.IEBN2d, {"noise": (0.8, 0.5)}),
    (cn.RBN2d, {}),
    (cn.RBN2d, {"noise": (0.8, 0.5)}),
    (cn.RBN2d, {"scale_stat": "std"}),
    (cn.RBN2d, {"scale_stat": "std", "noise": (-0.8, 0.5)}),
    (cn.SE2d, {"reduction": 2}),
    (cn.SE2d, {"reduction": 2, "noise": (0.8, 0.5)}),
]


@torch.no_grad()
@pytest.mark.parametrize(("kind", "options"), AVERAGE_GATES)
def test_lossy_keeps_the_gate_of_an_average_input(kind, options):
    """An input whose planes all have the running mean and variance: there the average gate is the gate."""
    layer = settle(kind(4, **options), (64, 4, 3, 3))
    randomize_gates(layer)
    center = layer.center_weight if kind is cn.RBN2d else torch.zeros(4)
    mean = layer.bn.running_mean / (1 + center)
    x = randn(1, 4, 8, 8)
    x = (x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), keepdim=True, unbiased=False)
    x = x * (layer.bn.running_var + layer.eps).sqrt()[:, None, None] + mean[:, None, None]
    y = layer(x)
    plain = cn.revert(layer, lossy=True)
    torch.testing.assert_close(plain.running_mean, mean)
    torch.testing.assert_close(plain(x), y, rtol=1e-4, atol=1e-5)


def test_lossy_changes_the_function_of_other_inputs():
    net, x = convert(small(), "iebn"), randn(*X, seed=5)
    randomize_gates(net)
    expected = net(x)
    assert relative(cn.revert(net, lossy=True)(x), expected) > 1e-3


def test_a_network_without_memory():
    """On the meta device nobody knows whether a gate is constant."""
    with torch.device("meta"):
        net = nn.Sequential(cn.IEBN2d(4), cn.RBN2d(4, scaling=False), cn.BN2d(4))
    with pytest.raises(ValueError, match=r"0 \(IEBN2d\): its gate has no values on the meta device"):
        cn.revert(net)
    assert [type(layer) for layer in cn.revert(net, lossy=True)] == [nn.BatchNorm2d] * 3


@torch.no_grad()
@pytest.mark.parametrize("method", ["iebn", "rbn"])
@pytest.mark.parametrize("name", ["timm efficientnet_b0", "FrozenBatchNorm2d", "SyncBatchNorm", "SplitBatchNorm2d"])
def test_every_kind_of_source_comes_back(name, method):
    factory, shape, _ = MODELS[name]
    torch.manual_seed(0)
    net, x = settle(factory(), shape).double(), randn(*shape, seed=5, dtype=torch.float64)
    before = {key: (module, type(module)) for key, module in norms(net).items()}
    acts = {key: (m.drop, m.act) for key, (m, _) in before.items() if hasattr(m, "act")}
    state, expected = net.state_dict().keys(), output(net, x)
    cn.revert(convert(net, method, preserve=True))
    assert {key: (module, type(module)) for key, module in norms(net).items()} == before
    assert {key: (m.drop, m.act) for key, m in norms(net).items() if hasattr(m, "act")} == acts
    assert net.state_dict().keys() == state
    assert relative(output(net, x), expected) <= 1e-10


@pytest.mark.parametrize("change", [timm_sync, freeze_batch_norm_2d, convert_splitbn_model])
def test_what_timm_made_of_the_child_keeps_drop_and_act(change):
    """A BatchNormAct2d, converted, then synchronized, frozen or split: timm's class with act comes back."""
    source = settle(BatchNormAct2d(4, act_layer=nn.SiLU), (4, 4, 3, 3))
    expected, x = change(copy.deepcopy(source)).eval(), randn(4, 4, 3, 3)
    layer = change(convert(source, "rbn", preserve=True)).eval()
    plain = cn.revert(layer)
    assert type(plain) is type(expected)
    assert isinstance(plain.act, nn.SiLU)
    torch.testing.assert_close(plain(x), copy.deepcopy(source)(x) if hasattr(source, "act") else expected(x))


def test_an_activation_that_batchnorm_cannot_carry_is_refused():
    layer = cn.RBN1d(4)
    layer.act = nn.SiLU()
    with pytest.raises(ValueError, match=r"\(model\) \(RBN1d\): a BatchNorm1d cannot take its drop and act over"):
        cn.revert(layer)
    assert isinstance(layer.act, nn.SiLU)


def test_act_relu_comes_back_as_a_layer_that_has_it():
    net, x = convert(small(), "iebn", act="relu"), randn(*X, seed=5)
    layer = net.bn1
    layer.drop = nn.Dropout().eval()
    expected = net(x)
    cn.revert(net)
    assert (type(net.bn1), net.bn1.act) == (cn.BN2d, "relu")
    assert net.bn1.bn is layer.bn
    assert net.bn1.drop is layer.drop
    assert relative(net(x), expected) <= 1e-5
    convert(net, "rbn")
    assert (type(net.bn1), net.bn1.act) == (cn.RBN2d, "relu")


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(["iebn", "rbn", "bn"], 2)))
def test_method_to_method_goes_through_batchnorm(first, second):
    net, x = convert(small().train(), first, preserve=True), randn(*X, seed=5)
    twin = cn.revert(copy.deepcopy(net))
    children = [layer.bn for layer in norms(net).values()]
    convert(net, second)
    convert(twin, second)
    assert [layer.bn for layer in norms(net).values()] == children
    assert not any(layer.compensated for layer in norms(net).values())
    torch.testing.assert_close(net(x), twin(x))


def test_method_to_method_preserves_too():
    net, x = small(), randn(*X, seed=5)
    expected = net(x)
    for method in ("iebn", "rbn", "bn", "iebn"):
        convert(net, method, preserve=True)
        assert relative(net(x), expected) <= 1e-5


def test_compensated_follows_copies_and_ends_with_the_layer():
    net = convert(small(), "iebn", preserve=True)
    assert copy.deepcopy(net).bn1.compensated
    convert(net, "iebn", init=(0.0, 0.5))
    assert not net.bn1.compensated
    convert(cn.revert(net), "iebn")
    assert not net.bn1.compensated


def test_a_shared_gamma_is_not_folded_twice():
    net = small()
    net.downsample[1].weight = net.layer1[1].weight
    convert(net, "iebn")
    before = snapshot(net)
    for lossy in (False, True):
        with pytest.raises(ValueError, match=r"layer1\.1 \(IEBN2d\).*shares its weight with another layer"):
            cn.revert(net, lossy=lossy)
    assert snapshot(net) == before


def test_bad_arguments():
    with pytest.raises(TypeError, match="lossy=1 must be True or False"):
        cn.revert(small(), lossy=1)
    net = timm.create_model("resnet18")
    assert cn.revert(net) is net


def test_lossy_without_statistics():
    """Nobody knows an average input: its mean is taken as 0."""
    layer = cn.IEBN2d(4, track_running_stats=False, init=(0.5, -1.0))
    plain = cn.revert(layer, lossy=True)
    torch.testing.assert_close(plain.weight.detach(), torch.sigmoid(torch.full((4,), -1.0)))
    assert plain.running_mean is None


def mixed():
    """Gates in bfloat16, BatchNorms in float32; the gate of the last layer depends on the input."""
    net = convert(convert(small(), "iebn", exclude="down*"), "iebn", include="down*", operator="fc").bfloat16()
    for layer in norms(net).values():
        layer.bn.float()
    return net


def test_lossy_with_gates_of_another_dtype():
    net = mixed()
    layer = net.downsample[1]
    gates = {name: gate.detach().float() for name, gate in layer.gates().items()}
    gate, _ = layer.method.mean_gate(gates, layer.bn.running_mean)
    gamma = layer.weight.detach().clone()
    cn.revert(net, lossy=True)
    assert all(type(layer) is nn.BatchNorm2d for layer in norms(net).values())
    torch.testing.assert_close(net.downsample[1].weight, gamma * gate)


def test_an_error_while_gates_are_computed_changes_nothing(monkeypatch):
    """The last layer's gate fails: the first two must not have been reverted by then."""
    net = mixed()
    before = snapshot(net)

    def fails(self, p, running_mean, noise):
        raise MemoryError

    monkeypatch.setattr(type(net.bn1.method), "mean_gate", fails)
    with pytest.raises(MemoryError):
        cn.revert(net, lossy=True)
    assert snapshot(net) == before


@pytest.mark.parametrize("method", ["bn", "rbn"])
def test_revert_inside_a_device_context(method):
    net = convert(small(), method, **({"scaling": False} if method == "rbn" else {"noise": (0.5, 0.1)}))
    x = randn(*X, seed=5)
    expected = net(x)
    with torch.device("meta"):
        cn.revert(net)
    torch.testing.assert_close(net(x), expected)
