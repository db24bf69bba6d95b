"""torch.func, forward mode, double backward, frozen tensors, and modes without gradients."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, jacrev, jvp, vmap

import calibnorm as cn
from cases import each_layer, each_mode, gradients, image, parameters, randn, randomize
from tolerances import ORACLE, error

# torch imports its decompositions at the first use of forward mode, and scripts them with its own deprecated function.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")

OPTIONS = [
    (cn.BN2d, {"noise": (0.8, 0.5)}),
    (cn.IEBN2d, {}),
    (cn.IEBN2d, {"operator": "fc", "position": "both", "activation": "softmax"}),
    (cn.RBN2d, {}),
    (cn.RBN2d, {"center_stat": "std", "scale_stat": "std"}),
    (cn.RBN2d, {"center_stat": "spatial_std", "scale_stat": "spatial_mean"}),
]
each_option = pytest.mark.parametrize(("layer_type", "options"), OPTIONS, ids=lambda v: getattr(v, "__name__", str(v)))


def small(seed=0):
    return randn(3, 2, 2, 2, seed=seed, dtype=torch.float64)


def untracked(layer_type, training, **options):
    """A float64 layer without buffers to move in training, with them in eval."""
    layer = layer_type(2, track_running_stats=not training, dtype=torch.float64, **options)
    return randomize(layer).train(training)


@each_option
def test_vmap_in_eval(layer_type, options):
    layer = untracked(layer_type, False, **options)
    xs = torch.stack([small(seed) for seed in range(4)])
    assert error(vmap(layer)(xs), torch.stack([layer(x) for x in xs])) <= ORACLE
    moved = vmap(layer, in_dims=2, out_dims=1)(xs.movedim(0, 2))
    assert error(moved.movedim(1, 0), vmap(layer)(xs)) <= ORACLE


@each_option
def test_per_sample_gradients(layer_type, options):
    layer = untracked(layer_type, False, **options)
    p, b = dict(layer.named_parameters()), dict(layer.named_buffers())
    xs = small()

    def loss(params, x):
        return functional_call(layer, (params, b), (x[None],)).sin().sum()

    per_sample = vmap(grad(loss), (None, 0))({k: v.detach() for k, v in p.items()}, xs)
    for i, x in enumerate(xs):
        expected = gradients(layer(x[None]).sin().sum(), p, torch.tensor(1.0, dtype=torch.float64))
        assert all(error(per_sample[name][i], expected[name]) <= ORACLE for name in p)


@each_option
@each_mode
def test_forward_mode(layer_type, options, training):
    """J t from forward mode, and t'(J t) = (t' J) t with reverse mode."""
    layer = untracked(layer_type, training, **options)
    x, tangent, dy = small(), small(1), small(2)
    y, dy_forward = jvp(layer, (x,), (tangent,))
    assert error(y, layer(x)) <= ORACLE
    dx = gradients(layer(x.requires_grad_()), {"x": x}, dy)["x"]
    assert error((dy * dy_forward).sum(), (dx * tangent).sum()) <= ORACLE
    with forward_ad.dual_level():
        dual = layer(forward_ad.make_dual(x.detach(), tangent))
        assert error(forward_ad.unpack_dual(dual).tangent, dy_forward) <= ORACLE


@each_option
def test_forward_mode_in_a_parameter(layer_type, options):
    """x carries no tangent: what sees only the input must not take the path without forward mode."""
    layer = untracked(layer_type, False, **options)
    for name, p in layer.named_parameters():
        tangent = randn(*p.shape, seed=3, dtype=torch.float64)
        x, dy = small(), small(2)
        rest = {n: t.detach() for n, t in layer.named_parameters()}
        with forward_ad.dual_level():
            y = functional_call(layer, {**rest, name: forward_ad.make_dual(p.detach(), tangent)}, (x,))
            dy_forward = forward_ad.unpack_dual(y).tangent
        expected = (gradients(layer(x), {"p": p}, dy)["p"] * tangent).sum()
        assert error((dy * dy_forward).sum(), expected) <= ORACLE


@pytest.mark.untraced
@each_option
@each_mode
def test_gradients_and_double_backward(layer_type, options, training):
    layer = untracked(layer_type, training, **options)
    names = [name for name, _ in layer.named_parameters()]

    def call(x, *tensors):
        return functional_call(layer, dict(zip(names, tensors, strict=True)), (x,))

    leaves = [t.detach().clone().requires_grad_() for t in (small(), *layer.parameters())]
    assert gradcheck(call, leaves, check_forward_ad=True)
    assert gradgradcheck(call, leaves)


@each_mode
def test_jacobian(training):
    layer = untracked(cn.RBN2d, training)
    x = small()
    assert error(jacrev(layer)(x), torch.autograd.functional.jacobian(layer, x)) <= ORACLE


@each_layer
def test_vmap_in_training_is_refused_by_torch(layer_type):
    """As with nn.BatchNorm2d: one set of running statistics cannot follow many batches."""
    for layer in (randomize(layer_type(4)), torch.nn.BatchNorm2d(4)):
        with pytest.raises(RuntimeError, match="vmap"):
            vmap(layer)(torch.stack([image(), image()]))


@each_layer
@each_mode
def test_every_subset_of_requires_grad(layer_type, training):
    layer = untracked(layer_type, training)
    leaves = {"input": small().requires_grad_(), **parameters(layer)}
    dy = small(5)
    everything = gradients(layer(leaves["input"]), leaves, dy)
    for asked in itertools.product([True, False], repeat=len(leaves)):
        for leaf, want in zip(leaves.values(), asked, strict=True):
            leaf.requires_grad_(want).grad = None
        y = layer(leaves["input"])
        assert y.requires_grad == any(asked)
        if any(asked):
            y.backward(dy)
        for (name, leaf), want in zip(leaves.items(), asked, strict=True):
            if want:
                assert error(leaf.grad, everything[name]) <= ORACLE, (name, asked)
            else:
                assert leaf.grad is None


@each_layer
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_without_gradients_then_training(layer_type, mode):
    """Statistics move under either mode, as BatchNorm's, and training goes on as if nothing had been."""
    layer, other = randomize(layer_type(4)), randomize(layer_type(4))
    with mode():
        quiet = layer(image(seed=1))
        layer.eval()(image(seed=2))
    assert not quiet.requires_grad
    assert torch.equal(other(image(seed=1)), quiet)
    layer.train()
    results = []
    for module in (layer, other):
        x = image().requires_grad_()
        y = module(x)
        results.append([y, *gradients(y, {"input": x, **parameters(module)}, randn(*y.shape)).values()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(layer.buffers(), other.buffers(), strict=True))


@each_layer
def test_layer_made_in_inference_mode(layer_type):
    with torch.inference_mode():
        layer = layer_type(4)
        assert layer(image()).shape == image().shape
