"""Whole networks load checkpoints of plain BatchNorm networks and of the authors' code."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

import calibnorm as cn
from cases import randn
from conversion.helpers import MODELS, Small, convert, norms, output, randomize_gates, relative, settle, small

X = (4, 3, 5, 5)
METHODS = [
    ("bn", {}),
    ("iebn", {}),
    ("iebn", {"position": "both", "activation": "tanh"}),
    ("iebn", {"position": "beta"}),
    ("rbn", {}),
    ("rbn", {"scaling": False}),
]
each_method = pytest.mark.parametrize(("method", "options"), METHODS, ids=lambda v: v if isinstance(v, str) else str(v))


def saved(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@each_method
@pytest.mark.parametrize("preserve", [True, False])
@pytest.mark.parametrize("assign", [True, False])
def test_before_or_after_conversion_is_the_same(method, options, preserve, assign):
    plain, x = small(), randn(*X, seed=5)
    state = saved(plain.state_dict())
    before = {name: tensor.clone() for name, tensor in state.items()}
    loaded_first = convert(copy.deepcopy(plain), method, preserve=preserve, **options)
    loaded_last = convert(small(seed=9), method, preserve=preserve, **options)
    randomize_gates(loaded_last)  # a plain checkpoint brings the initial gates
    loaded_last.load_state_dict(state, strict=True, assign=assign)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.items()), "the caller's state was changed"
    assert state.keys() == before.keys()
    if preserve:
        assert relative(loaded_last(x), plain(x)) <= 1e-5
    for training in (False, True):
        y = loaded_first.train(training)(x)
        torch.testing.assert_close(loaded_last.train(training)(x), y)
    assert all(isinstance(p, nn.Parameter) for p in loaded_last.parameters())


@pytest.mark.parametrize("method", ["iebn", "rbn"])
@pytest.mark.parametrize("name", ["timm efficientnet_b0", "FrozenBatchNorm2d", "SplitBatchNorm2d"])
def test_plain_checkpoints_of_other_sources(name, method):
    """Act and drop have their keys beside the BatchNorm's; the parts of a split one lie under aux_bn."""
    factory, shape, _ = MODELS[name]
    torch.manual_seed(0)
    plain, x = settle(factory(), shape).double(), randn(*shape, seed=5, dtype=torch.float64)
    net = convert(factory().double(), method, preserve=True).eval()
    net.load_state_dict(saved(plain.state_dict()), strict=True)
    with torch.no_grad():
        assert relative(output(net, x), output(plain, x)) <= 1e-10
        for model in (plain, net):
            torch.manual_seed(1)
            model.train()
        expected = output(plain, x)
        torch.manual_seed(1)
        assert relative(output(net, x), expected) <= 1e-10


def test_a_converted_checkpoint_keeps_its_gates_and_is_not_rescaled():
    net = convert(small(), "iebn", preserve=True)
    randomize_gates(net)
    twin = convert(small(seed=9), "iebn", preserve=True)
    twin.load_state_dict(saved(net.state_dict()))
    assert all(torch.equal(t, net.state_dict()[name]) for name, t in twin.state_dict().items())


AUTHORS = {
    "iebn": {"weight_readjust": "gate_weight", "bias_readjust": "gate_bias"},
    "rbn": {name: name for name in ("center_weight", "scale_weight", "scale_bias")},
}


@pytest.mark.parametrize("method", AUTHORS)
@pytest.mark.parametrize("preserve", [True, False])
def test_a_network_in_the_authors_names_and_shapes(method, preserve):
    """Trained gates are taken as they are, whether or not the layers compensate for their initial gate."""
    trained, x = convert(small(), method), randn(*X, seed=5)
    randomize_gates(trained)
    theirs = {ours: name for name, ours in AUTHORS[method].items()}
    state = {}
    for key, tensor in trained.state_dict().items():
        prefix, _, name = key.rpartition(".")
        if name in theirs:
            state[f"{prefix}.{theirs[name]}"] = tensor.reshape(1, -1, 1, 1)
        elif prefix.endswith(".bn"):
            is_affine = name in ("weight", "bias")
            state[f"{prefix.removesuffix('.bn')}.{name}"] = tensor.reshape(1, -1, 1, 1) if is_affine else tensor
        else:
            state[key] = tensor
    net = convert(small(seed=9), method, preserve=preserve)
    net.load_state_dict(saved(state), strict=True)
    exact = {} if method == "iebn" and preserve else {"rtol": 0, "atol": 0}  # there the gates' unit changes
    torch.testing.assert_close(net(x), trained(x), **exact)


@pytest.mark.parametrize("gate_inputs", [("mean", "standardized"), ("standardized", "mean")])
@pytest.mark.parametrize("position", ["gamma", "beta", "both"])
def test_gates_of_the_other_unit_are_translated(gate_inputs, position):
    """To the same function with running statistics: such a checkpoint is that of version 0.1, or of the authors."""
    trained, net = (
        convert(small(seed=i).double(), "iebn", gate_input=g, position=position) for i, g in enumerate(gate_inputs)
    )
    randomize_gates(trained)
    x = randn(*X, seed=5, dtype=torch.float64)
    net.load_state_dict(saved(trained.state_dict()), strict=True)
    assert relative(output(net.eval(), x), output(trained.eval(), x)) <= 1e-12


def test_gates_of_the_other_unit_without_statistics_are_refused():
    trained, net = (convert(small(seed=i), "iebn", gate_input=g) for i, g in enumerate(("mean", "standardized")))
    state = {name: t for name, t in trained.state_dict().items() if not name.startswith("bn1.bn.running")}
    with pytest.raises(
        RuntimeError, match=r"(?s)Missing key.*bn1\.standardized_gate_weight.*Unexpected key.*bn1\.gate_weight"
    ):
        net.load_state_dict(state)


@pytest.mark.parametrize("method", ["iebn", "rbn"])
def test_a_state_without_counts(method):
    plain, x = small(), randn(*X, seed=5)
    state = {key: tensor for key, tensor in plain.state_dict().items() if not key.endswith("num_batches_tracked")}
    net = convert(Small(), method, preserve=True).eval()
    net.load_state_dict(state, strict=True)
    assert relative(net(x), plain(x)) <= 1e-5
    assert int(net.bn1.bn.num_batches_tracked) == 0


def test_a_state_with_some_gates_only_is_refused():
    net = convert(small(), "iebn")
    state = small(seed=9).state_dict()
    state["bn1.gate_weight"] = torch.ones(4)
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"bn1\.gate_bias\""):
        net.load_state_dict(state)


def test_not_strict_reports_and_loads_the_rest():
    net = convert(small(), "rbn", preserve=True)
    randomize_gates(net)
    kept = net.layer1[1].scale_weight.detach().clone()
    plain = small(seed=9)
    state = {key: tensor for key, tensor in plain.state_dict().items() if not key.startswith("layer1.1")}
    state["surprise"] = torch.ones(1)
    missing, unexpected = net.load_state_dict(state, strict=False)
    assert unexpected == ["surprise"]
    assert {key.rpartition(".")[0] for key in missing} == {"layer1.1", "layer1.1.bn"}
    assert torch.equal(net.layer1[1].scale_weight, kept)
    assert not net.bn1.scale_weight.any()
    torch.testing.assert_close(net.bn1.weight, plain.bn1.weight / torch.sigmoid(torch.ones(4)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_checkpoint_of_another_dtype(dtype):
    net = convert(small(seed=9), "iebn", preserve=True)
    net.load_state_dict(small().to(dtype).state_dict())
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    net.load_state_dict(small().to(dtype).state_dict(), assign=True)
    assert {p.dtype for p in net.parameters()} == {dtype}
    assert {p.dtype for p in norms(net)["bn1"].gates().values()} == {dtype}


def test_a_shared_layer_loads_once():
    def network():
        bn = nn.BatchNorm2d(4)
        return settle(nn.Sequential(bn, nn.Conv2d(4, 4, 1), bn), (4, 4, 3, 3))

    plain, x = network(), randn(4, 4, 3, 3)
    net = cn.convert(nn.Sequential(bn := nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), bn), "iebn", preserve=True).eval()
    net.load_state_dict(plain.state_dict())
    torch.testing.assert_close(net(x), plain(x))


def test_reverted_networks_load_plain_checkpoints_unchanged():
    plain = small()
    net = cn.revert(convert(small(seed=9), "iebn", preserve=True))
    net.load_state_dict(plain.state_dict())
    assert torch.equal(net.bn1.weight, plain.bn1.weight)


PARTS = [("running_mean", "running_var"), ("weight",), ("weight", "bias"), ("weight", "bias", "running_mean")]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("names", PARTS, ids="+".join)
@pytest.mark.parametrize("preserve", [True, False])
def test_a_part_of_a_plain_checkpoint_leaves_trained_gates_alone(preserve, names, strict):
    """Gamma and beta come as they are: the gates that stay need not be the initial ones that they would make up for."""
    net = convert(small(), "iebn", preserve=preserve, position="both")
    randomize_gates(net)
    plain = small(seed=9).bn1
    state = {f"bn1.{name}": getattr(plain, name).detach() for name in names}
    gates = {f"bn1.{name}" for name in net.bn1.gates()}
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    if strict:
        with pytest.raises(
            RuntimeError, match=r"Missing key\(s\) in state_dict:.*\"bn1\.(standardized_)?gate_weight\""
        ):
            net.load_state_dict(state)
    else:
        missing, unexpected = net.load_state_dict(state, strict=False)
        assert gates <= set(missing)
        assert not unexpected
    for name, tensor in net.state_dict().items():
        new = state.get(name.replace("bn1.bn.", "bn1."), before[name])
        assert torch.equal(tensor, new), name


@pytest.mark.parametrize("position", ["gamma", "both"])
def test_reset_layers_still_compensate(position):
    """Reset, a layer computes what a new BatchNorm does; a plain checkpoint loaded then keeps its function too."""
    plain = nn.BatchNorm2d(4)
    layer = cn.convert(nn.BatchNorm2d(4), "iebn", preserve=True, position=position)
    x = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    layer.reset_parameters()
    torch.testing.assert_close(layer(x), plain(x))
    plain.weight.data.uniform_(0.5, 2.0)
    layer.load_state_dict(plain.state_dict())
    torch.testing.assert_close(layer(x), plain(x))
