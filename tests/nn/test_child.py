"""Following the child: what a layer makes of each kind of BatchNorm that it finds, and whom it refuses."""

from __future__ import annotations

import pytest
import torch
from timm.layers import SplitBatchNorm2d
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from cases import each_layer, each_layout, each_method, each_mode, image, layer_of, randomize
from tolerances import error, reduction


@each_layer
@each_mode
def test_around_keeps_the_child(layer_type, training):
    child = randomize(nn.BatchNorm2d(4, 1e-3, 0.3, dtype=torch.float64)).train(training)
    child.weight.requires_grad_(False)
    layer = layer_type.around(child, noise=(0.5, 0.2))
    assert layer.bn is child
    assert layer.training is training
    assert layer.noise == (0.5, 0.2)
    assert (layer.eps, layer.momentum) == (1e-3, 0.3)
    assert {p.dtype for p in layer.parameters()} == {torch.float64}
    assert layer(image(torch.float64)).dtype == torch.float64
    twin = layer_type(4, 1e-3, 0.3, dtype=torch.float64, noise=(0.5, 0.2)).train(training)
    twin.load_state_dict(layer.state_dict())
    if not training:
        assert torch.equal(layer(image(torch.float64)), twin(image(torch.float64)))


@each_layer
@pytest.mark.parametrize(
    "child", [nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4, track_running_stats=False)], ids=str
)
def test_around_a_child_without_tensors(layer_type, child):
    layer = layer_type.around(child)
    assert layer.affine == child.affine
    assert layer(image()).shape == image().shape


@each_layer
def test_around_a_child_without_beta(layer_type):
    if "bias" not in nn.BatchNorm2d.__init__.__annotations__:
        pytest.skip("this torch has no BatchNorm without beta")
    layer = layer_type.around(randomize(nn.BatchNorm2d(4, bias=False)))
    assert layer.weight is not None
    assert layer.bias is None
    layer(image()).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


@pytest.mark.parametrize(
    "child", [nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4), nn.LazyBatchNorm2d(), nn.InstanceNorm2d(4)], ids=str
)
@each_layer
def test_around_refuses_others_by_name(layer_type, child):
    with pytest.raises(TypeError, match=type(child).__name__):
        layer_type.around(child)


@each_layer
@pytest.mark.parametrize("child", [nn.GroupNorm(2, 4), nn.Identity(), nn.Sequential(nn.BatchNorm2d(4))], ids=str)
def test_a_strange_child_is_refused_at_forward(layer_type, child):
    layer = layer_type(4)
    layer.bn = child
    with pytest.raises(TypeError, match=rf"{layer_type.__name__}: its child `bn` is a .*{type(child).__name__}"):
        layer(image())


class Odd(nn.BatchNorm2d):
    def forward(self, input):
        return super().forward(input) * 2


@each_layer
def test_a_batchnorm_that_computes_something_else_is_refused(layer_type):
    layer = layer_type(4)
    layer.bn = Odd(4)
    with pytest.raises(TypeError, match="Odd"):
        layer(image())


@each_layer
@each_mode
@pytest.mark.parametrize("eps", [0.0, 1e-3])
def test_frozen_batchnorm_child(layer_type, training, eps):
    """Four buffers, no state: always its own statistics, eps 0 is legal, gates stay live."""
    child = randomize(FrozenBatchNorm2d(4, eps=eps))
    layer = layer_type.around(child).train(training)
    twin = layer_type(4).eval()
    twin.load_state_dict({k: v for k, v in layer.state_dict().items()}, strict=False)
    twin.eps = eps
    before = {name: b.clone() for name, b in layer.named_buffers()}
    y = layer(image())
    assert error(y, twin(image())) <= reduction(torch.float32, 15)
    assert all(torch.equal(before[name], b) for name, b in layer.named_buffers())
    gates = list(layer.gates().values())
    if gates:
        assert all(g is not None for g in torch.autograd.grad(y.sin().sum(), gates))


@each_layer
def test_split_batchnorm_child(layer_type):
    """timm's: every part of the batch by a BatchNorm of its own; the first alone in eval."""
    child = randomize(SplitBatchNorm2d(4, num_splits=2))
    layer = layer_type.around(child)
    parts = [layer_type(4), layer_type(4)]
    for part, norm in zip(parts, [child, child.aux_bn[0]], strict=True):
        part.load_state_dict(nn.BatchNorm2d(4).state_dict())
        for name, gate in layer.gates().items():
            part.get_parameter(name).data.copy_(gate)
        for name in ("weight", "bias", "running_mean", "running_var"):
            part.bn.state_dict()[name].copy_(norm.state_dict()[name])
    y = layer(image())
    expected = torch.cat([part(x) for part, x in zip(parts, image().chunk(2), strict=True)])
    assert torch.equal(y, expected)
    assert torch.equal(child.running_mean, parts[0].bn.running_mean)
    assert torch.equal(child.aux_bn[0].running_mean, parts[1].bn.running_mean)
    assert torch.equal(layer.eval()(image()), parts[0].eval()(image()))
    before = {name: b.clone() for name, b in layer.named_buffers()}
    with pytest.raises(ValueError, match="batch of 3 cannot be split evenly among the 2 parts"):
        layer.train()(image()[:3])
    assert all(torch.equal(before[name], b) for name, b in layer.named_buffers())


@each_layer
def test_sync_batchnorm_child_in_one_process(layer_type):
    """It is never called (torch's raises on a CPU): one process is its own group."""
    layer, twin = randomize(layer_type(4)), randomize(layer_type(4))
    layer = nn.SyncBatchNorm.convert_sync_batchnorm(layer)
    assert type(layer.bn) is nn.SyncBatchNorm
    assert torch.equal(layer(image()), twin(image()))
    assert torch.equal(layer.bn.running_var, twin.bn.running_var)


@each_layer
def test_replaced_statistics_are_followed(layer_type):
    """What Lightning's freeze and torch.func's replacement of running statistics do to the child."""
    layer, twin = randomize(layer_type(4)), randomize(layer_type(4))
    layer.bn.track_running_stats = False
    before = layer.bn.running_mean.clone()
    assert torch.equal(layer(image()), twin(image()))
    assert torch.equal(layer.bn.running_mean, before)
    layer.bn.running_mean = layer.bn.running_var = layer.bn.num_batches_tracked = None
    assert torch.equal(layer.eval()(image()), layer.train()(image()))


@each_method
@each_layout
@each_mode
@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("missing", [False, True], ids=["none", "no attribute"])
def test_a_child_without_a_count(method, options, layout, training, momentum, missing):
    """Of a pickle from before PyTorch 0.4.1, or with None: as torch's BatchNorm, which cannot average then."""
    layer, plain = layer_of(method, options).train(training), nn.BatchNorm2d(4).train(training)
    expected = layer_of(method, options).train(training)
    for norm in (layer.bn, plain, expected.bn):
        norm.momentum = momentum
    expected.bn.num_batches_tracked.fill_(10**6)  # Batch Renorm's limits are the last ones without a count
    for norm in (layer.bn, plain):
        norm.num_batches_tracked = None
    if missing:
        del layer.bn._buffers["num_batches_tracked"]
    before, x = layer.bn.running_mean.clone(), image(layout=layout)
    assert error(layer(x), expected(x)) <= reduction(torch.float32, 15)
    plain(x)
    if layer.method.batch_statistics:
        assert torch.equal(layer.bn.running_mean, before) == (plain.running_mean == 0).all()
