"""torch.func and higher derivatives: the layer as a function of its parameters and buffers."""

from __future__ import annotations

import pytest
import torch
from torch.func import (
    functional_call,
    grad,
    jacfwd,
    jacrev,
    jvp,
    replace_all_batch_norm_modules_,
    stack_module_state,
    vjp,
    vmap,
)

from ecosystem.nets import LAYERS, assert_same, images, loss, network, oracle, statistics, stirred

pytestmark = [
    pytest.mark.parametrize("norm", LAYERS),
    # torch registers the decompositions of forward-mode AD by torch.jit.script, at the first use.
    pytest.mark.filterwarnings("ignore:`torch.jit.script:FutureWarning"),
]


def state(model):
    return {name: p.detach() for name, p in model.named_parameters()}, dict(model.named_buffers())


def test_functional_call_takes_the_given_tensors(norm):
    layer, other, x = stirred(norm, seed=1), stirred(norm, seed=2), images(channels=6)
    parameters, buffers = state(other)
    y = functional_call(layer.eval(), (parameters, buffers), (x,))
    torch.testing.assert_close(y, oracle(other, x, batch=False))
    assert not torch.allclose(y, layer(x))


def test_functional_call_in_training_moves_the_given_buffers_alone(norm):
    layer, x = stirred(norm).train(), images(channels=6)
    before = statistics(layer)
    parameters, buffers = state(layer)
    given = {name: b.clone() for name, b in buffers.items()}
    y = functional_call(layer, (parameters, given), (x,))
    assert_same(statistics(layer), before)
    torch.testing.assert_close(y, layer(x))
    assert_same(statistics(layer), given, rtol=1e-6, atol=1e-7)


def test_grad_of_functional_call_equals_backward(norm):
    model, x = network(norm).eval(), images()
    parameters, buffers = state(model)
    got = grad(lambda p: loss(functional_call(model, (p, buffers), (x,))))(parameters)
    loss(model(x)).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(got[name], p.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_per_sample_gradients_in_eval(norm):
    model, x = network(norm).eval(), images()
    parameters, buffers = state(model)

    def one(p, x_CHW):
        return loss(functional_call(model, (p, buffers), (x_CHW[None],)))

    got = vmap(grad(one), (None, 0))(parameters, x)
    for i in range(len(x)):
        model.zero_grad()
        loss(model(x[i : i + 1])).backward()
        for name, p in model.named_parameters():
            torch.testing.assert_close(got[name][i], p.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_replace_all_batch_norm_modules_makes_vmap_in_training_work(norm):
    model, x = network(norm).train(), images(n=8).reshape(2, 4, 3, 8, 8)
    parameters, buffers = state(model)

    def forward(batch):
        return functional_call(model, (parameters, buffers), (batch,))

    # As with torch's BatchNorm: statistics that are shared cannot be moved by a batched call, and it says so.
    with pytest.raises((RuntimeError, ValueError)):
        vmap(forward)(x)
    replace_all_batch_norm_modules_(model)
    parameters, buffers = state(model)
    assert not buffers
    torch.testing.assert_close(vmap(forward)(x), torch.stack([model(batch) for batch in x]), rtol=1e-4, atol=1e-5)
    layer = replace_all_batch_norm_modules_(stirred(norm))
    z = images(channels=6)
    torch.testing.assert_close(layer(z), oracle(layer, z, batch=True))
    torch.testing.assert_close(layer.eval()(z), oracle(layer, z, batch=True))


def test_an_ensemble_of_layers(norm):
    members = [stirred(norm, seed=i).eval() for i in range(3)]
    parameters, buffers = stack_module_state(members)
    x = images(channels=6)
    got = vmap(lambda p, b: functional_call(members[0], (p, b), (x,)))(parameters, buffers)
    torch.testing.assert_close(got, torch.stack([oracle(m, x, batch=False) for m in members]))


@pytest.mark.parametrize("training", [True, False])
def test_forward_and_reverse_mode_agree(norm, training):
    # Without running statistics a training forward is a pure function, as torch.func wants it.
    layer = stirred(norm, track_running_stats=not training).double().train(training)
    x, v = images(channels=6).double(), images(channels=6, seed=1).double()
    y, tangent = jvp(layer, (x,), (v,))
    torch.testing.assert_close(y, oracle(layer, x, batch=training), rtol=1e-9, atol=1e-9)
    h = 1e-6
    torch.testing.assert_close(tangent, (layer(x + h * v) - layer(x - h * v)) / (2 * h), rtol=1e-5, atol=1e-6)
    w = images(channels=6, seed=2).double()
    (pulled,) = vjp(layer, x)[1](w)
    torch.testing.assert_close((w * tangent).sum(), (pulled * v).sum(), rtol=1e-9, atol=1e-9)
    small = images(n=2, size=2, channels=6).double()
    torch.testing.assert_close(jacrev(layer)(small), jacfwd(layer)(small), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("training", [True, False])
def test_double_backward_through_a_gradient_penalty(norm, training):
    layer = stirred(norm).double().train(training)
    x = images(n=3, size=3, channels=6).double().requires_grad_()

    def penalty(z):
        (g,) = torch.autograd.grad(loss(layer(z)), z, create_graph=True)
        return g.square().sum()

    names = [name for name, _ in layer.named_parameters()]
    got = torch.autograd.grad(penalty(x), [x, *layer.parameters()], allow_unused=True)

    def reference_penalty(z):
        (g,) = torch.autograd.grad(loss(oracle(layer, z, batch=training)), z, create_graph=True)
        return g.square().sum()

    expected = torch.autograd.grad(reference_penalty(x), [x, *layer.parameters()], allow_unused=True)
    for name, a, b in zip(["x", *names], got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7, msg=name)
