"""Hooks on the child: tools find a BatchNorm by its class and put hooks on it, and the layer runs them for it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

import calibnorm as cn
from cases import LAYERS_2D, each_layer, each_layout, each_method, each_mode, image, layer_of, randn
from tolerances import error, reduction


def run(layer: nn.Module, x: Tensor, residual: Tensor | None) -> dict[str, Tensor]:
    """Output, gradients and buffers after one forward and backward of a layer with a ReLU behind it."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(x, residual, relu=True)
    y.backward(randn(*y.shape, seed=3))
    grads = {f"d {name}": p.grad for name, p in layer.named_parameters() if p.grad is not None}
    return {"y": y, "dx": x.grad, **grads, **dict(layer.named_buffers())}


@each_method
@each_layout
@each_mode
def test_every_hook_of_the_child_runs_and_changes_nothing(method, options, layout, training):
    layer = layer_of(method, options).train(training)
    plain, x, residual, events = copy.deepcopy(layer), image(layout=layout), image(seed=2, layout=layout), []
    layer.bn.register_forward_pre_hook(lambda m, args: events.append(("pre", m, args[0])))
    layer.bn.register_forward_pre_hook(lambda m, a, k: events.append(("kw pre", m, a[0], *k)), with_kwargs=True)
    layer.bn.register_forward_hook(lambda m, args, y: events.append(("forward", m, args[0], y)))
    layer.bn.register_forward_hook(lambda m, a, k, y: events.append(("kw", m, a[0], y, *k)), with_kwargs=True)
    layer.bn.register_full_backward_pre_hook(lambda m, dy: events.append(("pre backward", m, *dy)))
    layer.bn.register_full_backward_hook(lambda m, dx, dy: events.append(("backward", m, *dx, *dy)))
    got, expected = run(layer, x, residual), run(plain, x, residual)
    assert [kind for kind, *_ in events] == ["pre", "kw pre", "forward", "kw", "pre backward", "backward"]
    assert all(event[1] is layer.bn for event in events)
    # The residual and the ReLU come after the hooks, and so in passes of their own.
    assert {name: error(got[name], expected[name]) for name in expected if name != "num_batches_tracked"} == {
        name: pytest.approx(0.0, abs=reduction(torch.float32, 60)) for name in expected if name != "num_batches_tracked"
    }
    forward, backward = events[2], events[5]
    assert torch.equal(torch.relu(forward[3] + residual), got["y"])
    assert torch.equal(backward[2], got["dx"])
    assert torch.equal(backward[3], randn(*x.shape, seed=3) * (got["y"] > 0))


@each_method
@each_layout
def test_hooks_see_the_feature_whose_statistics_the_child_keeps(method, options, layout):
    """So that recorders, and losses that compare a batch with running statistics, agree with them."""
    layer, seen = layer_of(method, options, momentum=1.0), []
    if not layer.method.batch_statistics:
        layer.bn.momentum = 0.0  # it keeps none, and what is seen is the input
    layer.bn.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    layer(image(layout=layout))
    (x,) = seen
    if not layer.method.enters_statistics:
        assert torch.equal(x, image())
    if layer.method.batch_statistics and layer.method.ghost_size is None:
        assert error(layer.bn.running_mean, x.mean((0, 2, 3))) <= reduction(torch.float32, 60)
        assert error(layer.bn.running_var, x.var((0, 2, 3))) <= reduction(torch.float32, 60)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@each_method
@each_layout
def test_fvcores_update_bn_stats(method, options, layout):
    from fvcore.nn.precise_bn import update_bn_stats

    layer, data = layer_of(method, options), [image(seed=seed, layout=layout) for seed in range(4)]
    if not layer.method.batch_statistics:
        return  # nothing reads running statistics
    kept, plain = [], nn.BatchNorm2d(4)
    twin = copy.deepcopy(layer)
    twin.bn.register_forward_pre_hook(lambda m, args: kept.append(args[0].detach()))
    for x in data:
        twin(x)
    update_bn_stats(layer, data, 4)
    if layer.method.ghost_size is None:
        update_bn_stats(plain, kept, 4)
        assert error(layer.bn.running_mean, plain.running_mean) <= reduction(torch.float32, 240)
        assert error(layer.bn.running_var, plain.running_var) <= reduction(torch.float32, 240)
    assert (layer.bn.running_var > 0.05).all()
    assert layer.bn.momentum == 0.1


@each_layer
def test_hooks_of_every_module_reach_the_child(layer_type):
    layer, events = layer_type(4), []
    handles = [
        register_module_forward_pre_hook(lambda m, args: events.append((m, "pre"))),
        register_module_forward_hook(lambda m, args, y: events.append((m, "post"))),
    ]
    try:
        layer(image())
    finally:
        for handle in handles:
            handle.remove()
    assert events == [(layer, "pre"), (layer.bn, "pre"), (layer.bn, "post"), (layer, "post")]


@each_layer
def test_what_hooks_return_takes_the_place_of_what_they_saw(layer_type):
    layer, plain = layer_type(4).eval(), layer_type(4).eval()
    layer.bn.register_forward_hook(lambda m, args, y: -y)
    assert torch.equal(layer(image()), -plain(image()))
    layer.bn.register_forward_pre_hook(lambda m, args: (2 * args[0],))
    if layer.method.enters_statistics:
        with pytest.raises(RuntimeError, match=r"RBN2d: a forward pre-hook .* replaces the input.* on the layer"):
            layer(image())
    else:
        assert torch.equal(layer(image()), -plain(2 * image()))


@each_layer
def test_hooks_that_switch_statistics_off(layer_type):
    """What FairScale's checkpoint wrapper does to every BatchNorm, so that a batch counts once."""
    layer = layer_type(4)

    def off(m, args):
        if not torch.is_grad_enabled():
            m.kept, m.track_running_stats = m.track_running_stats, False

    def on(m, args, y):
        if not torch.is_grad_enabled():
            m.track_running_stats = m.kept

    for module in layer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(off)
            module.register_forward_hook(on)
    x = image().requires_grad_()
    torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=True).sum().backward()
    assert layer.bn.num_batches_tracked == 1
    assert layer.bn.track_running_stats


@each_layer
def test_hooks_of_the_parts_of_a_split_child(layer_type):
    from timm.layers import SplitBatchNorm2d

    layer, seen = layer_type.around(SplitBatchNorm2d(4, num_splits=2)), []
    for part in (layer.bn, layer.bn.aux_bn[0]):
        part.register_forward_hook(lambda m, args, y: seen.append((m, len(args[0]), len(y))))
    layer(image())
    assert seen == [(layer.bn.aux_bn[0], 2, 2), (layer.bn, 4, 4)]


@each_layer
def test_hooks_that_are_always_called_see_a_forward_fail(layer_type):
    layer, seen = layer_type(4), []
    layer.bn.register_forward_hook(lambda m, args, y: seen.append(y), always_call=True)
    layer.bn.register_forward_hook(lambda m, args, y: seen.append("not reached"))
    with pytest.raises(ValueError, match="one value per channel"):
        layer(torch.randn(1, 4, 1, 1))
    assert seen == [None]


@each_layer
def test_a_forward_of_its_own_is_refused_by_name(layer_type):
    """accelerate and others put wrappers on the instance; they would never run."""
    layer = layer_type(4)
    layer.bn.forward = torch.no_grad()(layer.bn.forward)
    with pytest.raises(TypeError, match=rf"{layer_type.__name__}: .*forward of its own on the child.*the layer itself"):
        layer(image())


@pytest.mark.parametrize("layer_type", LAYERS_2D)
def test_a_hook_of_the_child_compiles(layer_type):
    layer = layer_type(4)
    layer.bn.register_forward_hook(lambda m, args, y: 2 * y)
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="eager")
    assert error(compiled(image()), layer(image())) <= reduction(torch.float32, 60)


@each_layer
def test_fuse_and_hooks_of_the_child(layer_type):
    """A fused call runs the hooks of the child, too."""
    net, seen = nn.Sequential(nn.Conv2d(4, 4, 1), layer_type(4), nn.ReLU()), []
    x = image()
    expected = copy.deepcopy(net)(x)
    cn.fuse(net)
    net[1].bn.register_forward_hook(lambda m, args, y: seen.append(y))
    y = net(x)
    assert error(y, expected) <= reduction(torch.float32, 60)
    assert torch.equal(torch.relu(seen[0]), y)


@each_layer
def test_a_checkpoint_wrapper_around_the_child_is_refused_and_one_around_the_layer_works(layer_type):
    from torch.distributed.algorithms._checkpoint import checkpoint_wrapper as wrapping

    net = nn.Sequential(layer_type(4))
    wrapping.apply_activation_checkpointing(net, check_fn=lambda m: isinstance(m, layer_type))
    net(image().requires_grad_()).sum().backward()
    net = nn.Sequential(layer_type(4))
    wrapping.apply_activation_checkpointing(net, check_fn=lambda m: isinstance(m, nn.BatchNorm2d))
    with pytest.raises(TypeError, match=r"`bn` is a .*CheckpointWrapper.*; wrap the whole layer as one unit"):
        net(image())
