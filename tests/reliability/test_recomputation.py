"""Activation checkpointing repeats forwards in the backward pass: every method's gradients are those without it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from calibnorm.nn import recomputation
from cases import EVERY_METHOD, each_layout, each_method, each_mode, image, layer_of, randn
from tolerances import COMPILED, error

READING = [(name, options) for name, options in EVERY_METHOD if "brn" in str((name, options))]


class Repeated(nn.Module):
    def __init__(self, inner: nn.Module, use_reentrant: bool) -> None:
        super().__init__()
        self.inner, self.use_reentrant = inner, use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=self.use_reentrant)


def network(method, options, *, layers: int = 2) -> nn.Sequential:
    parts = [nn.Sequential(nn.Conv2d(4, 4, 1), layer_of(method, options), nn.ReLU()) for _ in range(layers)]
    net = nn.Sequential(*parts, nn.Conv2d(4, 4, 1))
    with torch.no_grad():
        for i, p in enumerate(p for m in net.modules() if isinstance(m, nn.Conv2d) for p in m.parameters()):
            p.copy_(randn(*p.shape, seed=i))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked.fill_(50_000)
    return net


def gradients(net: nn.Module, batches: list[Tensor], layout=torch.contiguous_format) -> dict[str, Tensor]:
    """Of the sum of what several forwards give, whose backward comes after all of them."""
    inputs = [x.clone(memory_format=torch.preserve_format).requires_grad_() for x in batches]
    sum(net(x).square().sum() for x in inputs).backward()
    named = {name.replace("inner.", ""): p.grad for name, p in net.named_parameters()}
    return {**named, **{f"x{i}": x.grad for i, x in enumerate(inputs)}}


def check(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 0.0) -> None:
    found = {name: error(actual[name], grad) for name, grad in expected.items() if grad is not None}
    assert {name: e for name, e in found.items() if not e <= tolerance} == {}


@each_method
@each_layout
@each_mode
@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not reentrant"])
@pytest.mark.parametrize("each", [True, False], ids=["each block", "at once"])
def test_gradients_of_accumulated_batches(method, options, layout, training, use_reentrant, each):
    plain = network(method, options).train(training)
    net = copy.deepcopy(plain)
    batches = [image(seed=seed, layout=layout) for seed in range(3)]
    net = nn.Sequential(*(Repeated(part, use_reentrant) for part in net)) if each else Repeated(net, use_reentrant)
    expected = gradients(plain, batches)
    check(gradients(net, batches), expected)


@pytest.mark.parametrize(("method", "options"), READING, ids=str)
def test_a_layer_that_runs_twice_and_a_graph_that_is_kept(method, options):
    plain = network(method, options, layers=1)
    net = copy.deepcopy(plain)
    results = []
    for twice in (lambda x: plain(plain(x)), lambda x: checkpoint(lambda t: net(net(t)), x, use_reentrant=False)):
        x = image().requires_grad_()
        y = twice(x).square().sum()
        results.append([*torch.autograd.grad(y, x, retain_graph=True), *torch.autograd.grad(y, x)])
    for actual, expected in zip(results[1], results[0], strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.untraced
@pytest.mark.parametrize("inside", [True, False], ids=["checkpoint compiled", "compiled checkpointed"])
@pytest.mark.parametrize(("method", "options"), READING, ids=str)
def test_compiled(method, options, inside):
    plain = network(
        method, options
    ).double()  # a bias before a norm has gradient 0, but for the rounding of terms of 100
    # A compiled graph that holds the checkpoint saves the buffers themselves: a second forward before its backward
    # makes torch raise, as for every buffer that a compiled graph saves.
    net, batches = copy.deepcopy(plain), [image(torch.float64, seed) for seed in range(1 if inside else 2)]
    if inside:
        net = torch.compile(Repeated(net, False), fullgraph=True, backend="aot_eager")
    else:
        net = Repeated(torch.compile(net, fullgraph=True, backend="aot_eager"), False)
    actual, expected = gradients(net, batches), gradients(plain, batches)
    check({name.replace("_orig_mod.", ""): grad for name, grad in actual.items()}, expected, COMPILED)


def test_the_operator():
    torch.library.opcheck(recomputation._read, (randn(3).double(), [randn(3), randn(3), torch.tensor(1)]))


@pytest.mark.parametrize(("method", "options"), READING, ids=str)
def test_nothing_is_remembered_in_a_step_without_checkpoints(method, options):
    layer = layer_of(method, options)
    layer(image().requires_grad_()).sum().backward()
    assert layer.bn.running_mean not in recomputation._reads
    with torch.no_grad():
        layer(image())
    assert len(recomputation._reads[layer.bn.running_mean]) == 1
    before = len(recomputation._reads)
    del layer
    assert len(recomputation._reads) == before - 1
