"""Counters, summaries, and tools that put something else in the place of a parameter."""

from __future__ import annotations

import copy

import pytest
import torch
import torchinfo
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.utils.flop_counter import FlopCounterMode

from ecosystem.nets import LAYERS, gates, images, loss, network, oracle, stirred

pytestmark = pytest.mark.parametrize("norm", LAYERS)

CONV_AND_FC = 8 * 3 * 9 * 64 + 2 * 8 * 8 * 9 * 64 + 8 * 5  # multiply-adds of one 8 x 8 image in `Net`


def test_torch_flop_counter_sees_the_convolutions(norm):
    model = network(norm)
    for training in (True, False):
        with FlopCounterMode(display=False) as counter:
            model.train(training)(images(n=2))
        assert counter.get_total_flops() == 2 * 2 * CONV_AND_FC


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_fvcore(norm):
    from fvcore.nn import FlopCountAnalysis, parameter_count  # its import scripts a function, which warns

    model = network(norm).eval()
    x = images(n=1)
    analysis = FlopCountAnalysis(model, x).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    flops = analysis.by_module()
    assert sum(flops[name] for name in ("conv1", "conv2", "conv3", "fc")) == CONV_AND_FC
    assert flops[""] >= CONV_AND_FC
    assert parameter_count(model)["bn1"] == sum(p.numel() for p in model.bn1.parameters())
    assert parameter_count(model)["bn1"] == 8 * (2 + len(model.bn1.gates()))


def test_torchinfo_counts_the_gates(norm):
    model = network(norm)
    before = copy.deepcopy(model.state_dict())
    found = torchinfo.summary(model, input_data=images(), verbose=0)
    assert found.total_params == sum(p.numel() for p in model.parameters())
    assert found.trainable_params == found.total_params
    assert norm.__name__ in str(found)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_forward_hooks_on_the_layer_fire_once_with_its_output(norm):
    model, x, seen = network(norm).eval(), images(), []
    model.bn2.register_forward_hook(lambda m, args, y: seen.append((args[0], y)))
    model(x)
    ((given, y),) = seen
    torch.testing.assert_close(y, oracle(model.bn2, given, batch=False))


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight

    def right_inverse(self, weight):
        return weight / 2


def test_a_parametrized_gamma_and_gate_are_used(norm):
    layer, x = stirred(norm).eval(), images(channels=6)
    gate = next(iter(layer.gates()))
    expected = layer(x)
    parametrize.register_parametrization(layer.bn, "weight", Doubled())
    parametrize.register_parametrization(layer, gate, Doubled())
    torch.testing.assert_close(layer(x), expected)  # the inverse kept the value
    with torch.no_grad():
        layer.bn.parametrizations.weight.original.mul_(3)
        layer.parametrizations[gate].original.add_(1)
    torch.testing.assert_close(layer(x), oracle(layer, x, batch=False))
    assert not torch.allclose(layer(x), expected)
    loss(layer(x)).backward()
    assert layer.bn.parametrizations.weight.original.grad.abs().sum() > 0
    assert layer.parametrizations[gate].original.grad.abs().sum() > 0
    parametrize.remove_parametrizations(layer.bn, "weight")
    torch.testing.assert_close(layer(x), oracle(layer, x, batch=False))


def test_a_pruned_gamma_follows_its_parameter(norm):
    # Pruning recomputes `weight = weight_orig * weight_mask` in a hook of the child, which nobody calls but the layer.
    layer, x = stirred(norm).train(), images(channels=6)
    mask = torch.tensor([1.0, 0, 1, 1, 0, 1])
    prune.custom_from_mask(layer.bn, "weight", mask)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(3):
        start = layer.bn.weight_orig.detach().clone()
        y = layer(x)
        torch.testing.assert_close(layer.bn.weight, layer.bn.weight_orig * mask)
        torch.testing.assert_close(y, oracle(layer, x, batch=True))
        optimizer.zero_grad()
        loss(y).backward()
        assert torch.equal(layer.bn.weight_orig.grad != 0, mask.bool())
        optimizer.step()
        assert not torch.equal(layer.bn.weight_orig, start)
    prune.remove(layer.bn, "weight")
    torch.testing.assert_close(layer.eval()(x), oracle(layer, x, batch=False))
    assert torch.equal(layer.weight == 0, mask == 0)


def test_a_pruned_gate_is_honoured(norm):
    layer, x = stirred(norm).eval(), images(channels=6)
    gate = next(iter(layer.gates()))
    prune.custom_from_mask(layer, gate, torch.tensor([1.0, 0, 1, 1, 0, 1]))
    torch.testing.assert_close(layer(x), oracle(layer, x, batch=False))
    assert (getattr(layer, gate)[[1, 4]] == 0).all()
    loss(layer(x)).backward()
    assert getattr(layer, f"{gate}_orig").grad.abs().sum() > 0


def test_pruning_gamma_through_the_layer_is_refused(norm):
    # gamma is the child's parameter; the layer only shows it.
    layer = stirred(norm)
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    with pytest.raises((KeyError, AttributeError)):
        prune.l1_unstructured(layer, "weight", 0.5)
    assert torch.equal(layer.bn.weight, before["bn.weight"])


def test_global_pruning_of_every_batchnorm(norm):
    model = network(norm).eval()
    kept = gates(model)
    children = [(m, "weight") for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(children) == 3
    prune.global_unstructured(children, prune.L1Unstructured, amount=0.5)
    seen = []
    for layer in (model.bn1, model.bn2, model.bn3):
        layer.register_forward_hook(lambda m, args, y: seen.append((y, oracle(m, args[0], batch=False))))
    model(images())
    assert len(seen) == 3
    for y, expected in seen:
        torch.testing.assert_close(y, expected)
    assert sum(int((m.weight == 0).sum()) for m, _ in children) == 12
    assert all(torch.equal(value, kept[name]) for name, value in gates(model).items())
