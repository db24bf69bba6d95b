"""Checkpointing, functional_call, double backward, torch.compile, export, tracing and global hooks, after fusing."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.utils.checkpoint import checkpoint

from cases import randn
from fusion.blocks import each_kind, network, x64
from fusion.helpers import assert_same, fuse, stir
from tolerances import COMPILED, error


@each_kind
def test_activation_checkpointing_and_functional_call(kind):
    model, plain = network(kind), network(kind, fused=False)
    grads = []
    for net in (model, plain):
        checkpoint(net, x64(), use_reentrant=False).square().sum().backward()
        grads.append({n: p.grad for n, p in net.named_parameters()})
    assert_same(*grads)
    doubled = {name: 1.2 * p.detach() for name, p in plain.named_parameters()}
    results = [torch.func.functional_call(net, doubled, (x64(),)) for net in (model, plain)]
    assert error(*results) <= 1e-10


@each_kind
def test_double_backward(kind):
    seconds = []
    for fused in (True, False):
        net, x = network(kind, fused=fused), x64().requires_grad_()
        (grad,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
        seconds.append(torch.autograd.grad(grad.square().sum(), x)[0])
    assert error(*seconds) <= 1e-7  # second derivatives through five norms


def test_double_backward_of_a_norm_that_runs_twice():
    """x is computed from the norm's own weight, and the residual is x."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x):
            y = F.relu(self.bn(x) + x)
            return F.relu(self.bn(y) + y)

    found = []
    for fused in (False, True):
        net, x = stir(Twice()), x64().requires_grad_()
        if fused:
            assert fuse(net) == {"bn": "fused: norm + add + ReLU"}
        wanted = [x, *net.parameters()]
        first = torch.autograd.grad(net(x).pow(3).sum(), wanted, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), wanted)
        found.append({str(i): g for i, g in enumerate((*first, *second))})
    assert_same(*found)


@pytest.mark.untraced
@each_kind
def test_torch_compile_gets_the_original(kind):
    model, plain = network(kind).float(), network(kind, fused=False).float()
    graphs = []

    def backend(graph, inputs):
        graphs.append([node.target for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    results = []
    for net in (model, plain):
        torch._dynamo.reset()
        results.append(torch.compile(net, backend=backend, fullgraph=True)(randn(4, 3, 12, 12)))
    assert error(*results) <= COMPILED
    assert [str(t) for t in graphs[0]] == [str(t) for t in graphs[1]]


@pytest.mark.untraced
def test_export_and_tracing_get_the_original():
    model, plain = network().eval(), network(fused=False).eval()
    x = x64()
    exported = [torch.export.export(net, (x,)) for net in (model, plain)]
    assert str(exported[0].graph) == str(exported[1].graph)
    traced = fx.symbolic_trace(model)
    assert torch.equal(traced(x), plain(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both are deprecated, and used
        assert torch.equal(torch.jit.trace(model, x)(x), plain(x))
        assert torch.equal(torch.jit.script(model)(x), plain(x))


def test_a_hook_on_all_modules_sees_every_call():
    model, seen = network(), []
    with torch.nn.modules.module.register_module_forward_hook(lambda module, args, y: seen.append(type(module))):
        model(x64())
    assert seen.count(nn.ReLU) == 5
    assert seen.count(nn.BatchNorm2d) == 6
