"""What every layer shares: reading through to the child, the activation, the residual, hooks, tools that trace."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import calibnorm as cn
from cases import each_dims, each_layer, each_mode, image, randn, randomize
from tolerances import COMPILED, error

SHAPES = {1: (6, 4, 5), 2: (4, 4, 3, 5), 3: (3, 4, 2, 3, 2)}
BATCHNORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


@each_dims
def test_owns_one_plain_child(layer_type):
    layer = layer_type(4, 1e-3, 0.2)
    assert [name for name, _ in layer.named_children()] == ["bn"]
    assert type(layer.bn) is BATCHNORMS[layer.dims]
    assert isinstance(layer, nn.Module)
    assert not isinstance(layer, nn.modules.batchnorm._BatchNorm)
    assert all(p.ndim == 1 for p in layer.parameters())


@each_layer
def test_properties_read_through_to_the_child(layer_type):
    layer = layer_type(4, 1e-3, 0.2)
    assert (layer.num_features, layer.eps, layer.momentum) == (4, 1e-3, 0.2)
    assert layer.affine
    assert layer.track_running_stats
    assert layer.weight is layer.bn.weight
    assert layer.bias is layer.bn.bias
    layer.eps, layer.momentum = 1e-2, None
    assert (layer.bn.eps, layer.bn.momentum) == (1e-2, None)
    layer.bn.eps, layer.bn.momentum = 1e-4, 0.5
    assert (layer.eps, layer.momentum) == (1e-4, 0.5)
    plain = layer_type(4, affine=False, track_running_stats=False)
    assert not plain.affine
    assert not plain.track_running_stats
    assert plain.weight is plain.bias is None


@each_layer
def test_statistics_are_not_read_through(layer_type):
    """Fusers that know BatchNorm by its attributes then fail aloud instead of dropping the gate."""
    layer = layer_type(4)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert not hasattr(layer, name)


@each_layer
def test_weight_and_bias_can_be_assigned(layer_type):
    """The idioms ``nn.init.zeros_(m.weight)`` and ``m.weight = nn.Parameter(...)``."""
    layer = layer_type(4)
    nn.init.zeros_(layer.weight)
    assert torch.equal(layer.bn.weight, torch.zeros(4))
    layer.weight = nn.Parameter(torch.full((4,), 2.0))
    layer.bias = nn.Parameter(torch.full((4,), 3.0))
    assert torch.equal(layer.bn.weight, torch.full((4,), 2.0))
    assert torch.equal(layer.bn.bias, torch.full((4,), 3.0))
    assert "weight" not in layer._parameters
    assert {"bn.weight", "bn.bias"} <= dict(layer.named_parameters()).keys()


@each_layer
def test_eps_and_momentum_matter(layer_type):
    a, b = (randomize(layer_type(4)) for _ in range(2))
    b.eps, b.momentum = 1.0, 0.9
    assert not torch.equal(a(image()), b(image()))
    assert not torch.equal(a.bn.running_mean, b.bn.running_mean)


@each_dims
def test_reset(layer_type):
    new, layer = layer_type(4), randomize(layer_type(4))
    layer.bn.num_batches_tracked.fill_(5)
    layer.reset_running_stats()
    assert torch.equal(layer.bn.running_var, torch.ones(4))
    assert int(layer.bn.num_batches_tracked) == 0
    assert not torch.equal(layer.weight, new.weight)
    layer.reset_parameters()
    for name, tensor in new.state_dict().items():
        assert torch.equal(layer.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (cn.BN2d(4), "BN2d(\n  4\n"),
        (cn.IEBN2d(4, operator="fc", noise=(0.5, 0.2)), "IEBN2d(\n  4, operator='fc', noise=(0.5, 0.2)\n"),
        (cn.RBN1d(3, restrict="tanh", act="relu"), "RBN1d(\n  3, restrict='tanh', act='relu'\n"),
        (cn.RBN2d(3, noise=(1, 0), noise_in="train"), "RBN2d(\n  3, noise=(1.0, 0.0), noise_in='train'\n"),
    ],
    ids=lambda v: "" if isinstance(v, str) else type(v).__name__,
)
def test_repr_shows_what_differs_from_the_defaults(layer, text):
    assert repr(layer).startswith(text)
    assert "BatchNorm" in repr(layer)


@pytest.mark.parametrize(
    ("layer_type", "options"),
    [
        (cn.BN2d, {"gamma_init": 0.5, "noise": (0.5, 0.2)}),
        (cn.IEBN2d, {"operator": "fc", "reduction": 2, "position": "both", "act": "relu"}),
        (cn.RBN2d, {"scaling": False, "init": (0.5, 0.0, 1.0), "noise": (0.5, 0.2), "noise_in": "train"}),
    ],
    ids=["BN2d", "IEBN2d", "RBN2d"],
)
def test_options_rebuild_the_layer(layer_type, options):
    layer = layer_type(4, **options)
    assert layer.options() == options
    assert repr(layer_type(4, **layer.options())) == repr(layer)


@each_layer
@each_mode
def test_relu_and_residual(layer_type, training):
    plain = randomize(layer_type(4)).train(training)
    fused = randomize(layer_type(4, act="relu")).train(training)
    x, residual = image(), image(seed=4)
    y = copy.deepcopy(plain)(x)
    assert torch.equal(copy.deepcopy(plain)(x, residual), y + residual)
    assert torch.equal(copy.deepcopy(fused)(x), torch.relu(y))
    assert torch.equal(copy.deepcopy(fused)(x, residual=residual), torch.relu(y + residual))
    x.requires_grad_()
    residual.requires_grad_()
    fused(x, residual).sum().backward()
    assert torch.equal(residual.grad, (y + residual > 0).float())


@each_layer
@each_mode
def test_relu_of_one_call(layer_type, training):
    layer = randomize(layer_type(4)).train(training)
    x, residual = image(), image(seed=4)
    y = copy.deepcopy(layer)(x)
    assert torch.equal(copy.deepcopy(layer)(x, relu=True), torch.relu(y))
    assert torch.equal(copy.deepcopy(layer)(x, residual, relu=True), torch.relu(y + residual))
    layer.act = nn.Tanh()
    assert torch.equal(copy.deepcopy(layer)(x, residual, relu=True), torch.relu(torch.tanh(y + residual)))
    both = randomize(layer_type(4, act="relu")).train(training)
    assert torch.equal(both(x, relu=True), torch.relu(y))


@each_layer
def test_a_relu_module_of_the_layer_runs_within_it_until_it_is_watched(layer_type, monkeypatch):
    layer, x, called = randomize(layer_type(4)), image(), []
    expected = torch.relu(copy.deepcopy(layer)(x))
    layer.act, layer.drop = nn.ReLU(inplace=True), nn.Identity()
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, y: called.append(1) or torch.relu(y))
    assert torch.equal(copy.deepcopy(layer)(x), expected)
    assert not called
    layer.act.register_forward_hook(lambda module, args, y: y + 1)
    assert torch.equal(layer(x), expected + 1)
    assert called


@each_layer
def test_relu_lets_nan_pass(layer_type):
    x = image()
    x[0, 0, 0, 0] = torch.nan
    assert layer_type(4, act="relu").eval()(x)[0, 0, 0, 0].isnan()


@each_layer
def test_noise_in_train_only(layer_type):
    always, train, none = (
        randomize(layer_type(4, **o)) for o in ({"noise": (0.5, 0.2)}, {"noise": (0.5, 0.2), "noise_in": "train"}, {})
    )
    assert torch.equal(always(image()), train(image()))
    assert not torch.equal(always(image()), none(image()))
    none = randomize(layer_type(4))
    none.load_state_dict(train.state_dict())
    assert torch.equal(train.eval()(image()), none.eval()(image()))
    assert not torch.equal(always.eval()(image()), none(image()))


@each_layer
def test_hooks_of_the_layer_run(layer_type):
    layer, seen = layer_type(4), []
    layer.register_forward_pre_hook(lambda module, args: seen.append("before"))
    layer.register_forward_hook(lambda module, args, y: seen.append("after") or y * 2)
    layer.register_full_backward_hook(lambda module, dx, dy: seen.append("backward"))
    x = image().requires_grad_()
    y = layer(x)
    y.sum().backward()
    assert seen == ["before", "after", "backward"]
    assert torch.equal(y, 2 * layer_type(4)(x))


@each_layer
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")
def test_jit_script_is_refused_by_name(layer_type):
    for module in (layer_type(4), nn.Sequential(nn.Conv2d(3, 4, 1), layer_type(4))):
        with pytest.raises(TypeError, match=rf"{layer_type.__name__} cannot be compiled by torch.jit.script; use"):
            torch.jit.script(module)


class Block(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), norm

    def forward(self, x):
        return self.norm(self.conv(x), x)


@each_layer
def test_fx_keeps_the_layer_whole(layer_type):
    torch.manual_seed(0)
    net = Block(randomize(layer_type(4))).eval()
    traced = torch.fx.symbolic_trace(net)
    calls = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert calls == ["conv", "norm"]
    assert torch.equal(traced(image()), net(image()))
    alone = torch.fx.symbolic_trace(nn.Sequential(net.norm))
    assert torch.equal(alone(image()), net.norm(image()))


@each_layer
@each_mode
@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")
def test_jit_trace(layer_type, training):
    layer = randomize(layer_type(4)).train(training)
    twin = copy.deepcopy(layer)
    traced = torch.jit.trace(twin, image(), check_trace=False)
    x = randn(6, 4, 5, 2)
    twin.load_state_dict(layer.state_dict())  # tracing ran one forward
    assert error(traced(x), layer(x)) <= COMPILED
    for name, buffer in layer.named_buffers():
        assert error(twin.get_buffer(name), buffer) <= COMPILED, name


@each_layer
def test_frozen_statistics_with_live_gates(layer_type):
    """``frozen``: running statistics in training, unmoved; gradients of everything else stay."""
    layer, twin = randomize(layer_type(4)), randomize(layer_type(4)).eval()
    layer.frozen = True
    before = {name: b.clone() for name, b in layer.named_buffers()}
    y = layer(image())
    assert torch.equal(y, twin(image()))
    y.sin().sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    assert all(torch.equal(before[name], b) for name, b in layer.named_buffers())


@each_layer
def test_child_in_eval_inside_a_training_layer(layer_type):
    layer, twin = randomize(layer_type(4)), randomize(layer_type(4)).eval()
    layer.bn.eval()
    assert torch.equal(layer(image()), twin(image()))
    assert int(layer.bn.num_batches_tracked) == 0
