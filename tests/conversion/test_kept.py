"""What a conversion keeps of the layers and of the network."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.utils import parametrize, prune

import calibnorm as cn
from calibnorm.nn import CalibratedNorm
from cases import randn
from conversion.helpers import NORMS, Small, convert, norms, relative, small, snapshot

METHODS = ["bn", "iebn", "rbn"]
each_method = pytest.mark.parametrize("method", METHODS)


@each_method
def test_a_shared_layer_stays_one_layer(method):
    bn = nn.BatchNorm2d(4)
    block = nn.Sequential(nn.Conv2d(4, 4, 1), bn)
    block.register_module("nothing", None)
    net = cn.convert(nn.ModuleDict({"a": block, "b": nn.Sequential(bn, bn), "c": block}), method)
    assert net["a"] is net["c"]
    assert isinstance(net["a"][1], CalibratedNorm)
    assert net["a"][1] is net["b"][0] is net["b"][1]
    assert net["a"][1].bn is bn


@each_method
def test_a_root_is_converted(method):
    bn = nn.BatchNorm2d(4)
    layer = cn.convert(bn, method)
    assert isinstance(layer, CalibratedNorm)
    assert layer.bn is bn
    assert cn.convert(layer, method) is layer
    assert cn.revert(layer) is bn


def test_deeply_nested_layers():
    net = nn.Sequential(nn.BatchNorm1d(3))
    for _ in range(100):
        net = nn.Sequential(nn.Identity(), net)
    cn.convert(net, "iebn")
    (name,) = norms(net)
    assert name == "1." * 100 + "0"
    assert isinstance(net.get_submodule(name), cn.IEBN1d)


@each_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("options", [{}, {"affine": False, "track_running_stats": False}], ids=["full", "bare"])
def test_dtype_is_kept(method, dtype, options):
    """Also where the BatchNorm holds no tensor to take it from."""
    net = cn.convert(Small(**options).to(dtype), method)
    assert {p.dtype for p in net.parameters()} == {dtype}
    assert net(randn(4, 3, 5, 5, dtype=dtype)).dtype is dtype


@each_method
def test_layers_on_meta(method):
    """A network without memory, converted with the compensation, then filled from a plain checkpoint."""
    trained, x = small(), randn(4, 3, 5, 5, seed=5)
    with torch.device("meta"):
        net = Small()
        cn.convert(net, method, preserve=True)
    assert all(t.is_meta for t in (*net.parameters(), *net.buffers()))
    net.load_state_dict(trained.state_dict(), assign=True)
    assert relative(net.eval()(x), trained(x)) <= 1e-5


def test_modes_and_requires_grad_of_each_layer():
    net = small().train()
    net.bn1.eval()
    net.layer1[1].weight.requires_grad_(False)
    kept = {name: p for name, p in net.named_parameters()}
    convert(net, "rbn")
    assert [net.get_submodule(name).training for name in NORMS] == [False, True, True]
    assert [net.get_submodule(name).bn.training for name in NORMS] == [False, True, True]
    flags = {name: (layer.weight.requires_grad, layer.bias.requires_grad) for name, layer in norms(net).items()}
    assert flags == {"bn1": (True, True), "layer1.1": (False, True), "downsample.1": (True, True)}
    assert net.bn1.bn.weight is kept["bn1.weight"], "an optimizer made before would lose gamma"
    assert all(gate.requires_grad for layer in norms(net).values() for gate in layer.gates().values())


def test_an_optimizer_made_before_still_updates_gamma():
    net, x = small().train(), randn(4, 3, 5, 5, seed=5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    cn.convert(net, "iebn", preserve=True)
    before = net.bn1.weight.detach().clone()
    net(x).square().sum().backward()
    optimizer.step()
    assert not torch.equal(net.bn1.weight, before)


def test_hooks_move_and_their_handles_remove_them():
    net, x, seen = small().train(), randn(4, 3, 5, 5, seed=5), []
    bn = net.bn1
    handles = [
        bn.register_forward_hook(lambda module, args, out: seen.append("forward")),
        bn.register_forward_hook(lambda module, args, kwargs, out: seen.append("kwargs"), with_kwargs=True),
        bn.register_forward_pre_hook(lambda module, args: seen.append("pre")),
        bn.register_forward_pre_hook(lambda module, args, kwargs: seen.append("pre kwargs"), with_kwargs=True),
        bn.register_full_backward_hook(lambda module, into, out: seen.append("backward")),
        bn.register_full_backward_pre_hook(lambda module, out: seen.append("pre backward")),
    ]
    expected = ["pre", "pre kwargs", "forward", "kwargs", "pre backward", "backward"]
    convert(net, "iebn")
    for change in (lambda: None, lambda: cn.revert(net), lambda: convert(net, "rbn"), lambda: convert(net, "bn")):
        change()
        seen.clear()
        net(x).sum().backward()
        assert seen == expected
    for handle in handles:
        handle.remove()
    seen.clear()
    net(x).sum().backward()
    assert seen == []


def test_a_hook_that_is_always_called():
    net, seen = small(), []
    net.bn1.register_forward_hook(lambda module, args, out: seen.append(type(module).__name__), always_call=True)
    convert(net, "iebn")
    with pytest.raises(ValueError, match="7 channels"):
        net.bn1(randn(2, 7, 3, 3))
    assert seen == ["IEBN2d"]


def test_a_hook_may_change_the_output():
    net = small()
    net.bn1.register_forward_hook(lambda module, args, out: torch.zeros_like(out))
    convert(net, "iebn")
    assert not net.bn1(randn(2, 4, 3, 3)).any()


def test_state_dict_hooks_stay_with_the_batchnorm():
    net, x = small(), randn(2, 4, 3, 3)
    layer = BatchNormAct2d(4)
    layer.register_state_dict_post_hook(
        lambda module, state, prefix, meta: state.update({prefix + "mark": torch.ones(1)})
    )
    net.bn1 = layer
    convert(net, "iebn")
    assert "bn1.bn.mark" in net.state_dict()
    assert net.bn1(x).shape == x.shape


def test_a_parametrized_gamma_goes_on_being_computed():
    class Double(nn.Module):
        def forward(self, weight):
            return 2 * weight

    plain, x = small(), randn(4, 3, 5, 5, seed=5)
    parametrize.register_parametrization(plain.bn1, "weight", Double())
    net = convert(copy.deepcopy(plain), "iebn")
    gate = torch.sigmoid(torch.tensor(-1.0))
    torch.testing.assert_close(
        net.bn1(net.conv1(x)) - net.bn1.bias[:, None, None],
        gate * (plain.bn1(plain.conv1(x)) - plain.bn1.bias[:, None, None]),
    )
    with pytest.raises(ValueError, match=r"bn1: gamma_init multiplies gamma, and this layer computes its weight"):
        convert(copy.deepcopy(plain), "bn", gamma_init=0.5)
    with pytest.raises(ValueError, match=r"bn1 \(IEBN2d\).*computes its weight"):
        cn.revert(net)


def test_a_pruned_layer_is_refused_by_name():
    net = small()
    prune.l1_unstructured(net.layer1[1], "weight", 0.5)
    before = snapshot(net)
    with pytest.raises(
        ValueError, match=r"layer1\.1 has its parameters rewritten before each forward.*make that permanent"
    ):
        cn.convert(net, "iebn")
    assert snapshot(net) == before
    prune.remove(net.layer1[1], "weight")
    assert isinstance(convert(net, "iebn").layer1[1], cn.IEBN2d)


@pytest.mark.parametrize("method", ["iebn", "rbn"])
def test_a_layer_whose_gate_is_pruned_is_refused_by_name(method):
    """The hook that computes the gate would go on with a BatchNorm that has none."""
    net = convert(small(), method)
    gate = next(iter(net.bn1.gates()))
    prune.l1_unstructured(net.bn1, gate, 0.5)
    for change in (partial(cn.revert, net, lossy=True), partial(cn.convert, net, "gn")):
        with pytest.raises(ValueError, match=r"bn1 has its .*rewritten before each forward.*make that permanent first"):
            change()
    prune.remove(net.bn1, gate)
    assert type(cn.revert(net, lossy=True).bn1) is nn.BatchNorm2d


def test_a_child_that_was_pruned_since_comes_back_pruned():
    net, x = convert(small(), "iebn", position="beta"), randn(4, 3, 5, 5, seed=5)
    prune.l1_unstructured(net.bn1.bn, "weight", 0.5)
    expected = net(x)
    assert relative(cn.revert(net)(x), expected) <= 1e-5
    assert prune.is_pruned(net.bn1)
    with torch.no_grad():
        net.bn1.weight_orig.mul_(2)
    assert relative(net(x), expected) > 0.01, "the mask was applied once, not before each forward"
    convert(prune.remove(net.bn1, "weight") and net, "iebn")
    prune.l1_unstructured(net.bn1.bn, "weight", 0.5)
    with pytest.raises(ValueError, match=r"bn1 \(IEBN2d\).*computes its weight \(pruned or parametrized\); make that"):
        cn.revert(net)
