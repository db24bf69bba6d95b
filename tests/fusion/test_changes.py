"""What changes in a network after fusing counts: hooks, replaced modules, frozen norms, settings of a block."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock
from torchvision.ops.misc import FrozenBatchNorm2d

from fusion.blocks import network, x64
from fusion.helpers import assert_same, computed, fuse, stir
from tolerances import error


def put_hook(model):
    model[1].bn2.register_forward_hook(lambda module, args, y: y * 2)


def put_hook_on_relu(model):
    model[1].relu.register_forward_pre_hook(lambda module, args: (args[0] - 1,))


def replace_relu(model):
    model[1].relu = nn.SiLU()
    model[0][2] = nn.SiLU()


def replace_norm(model):
    model[1].bn2 = nn.GroupNorm(2, 4).double()
    model[0][1] = nn.Identity()


def freeze(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def freeze_by_class(model):
    frozen = FrozenBatchNorm2d(4).double()
    frozen.load_state_dict(stir(nn.BatchNorm2d(4)).state_dict(), strict=False)
    model[1].bn2 = frozen


def stop_tracking(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False


def average(model):
    model[1].bn2.momentum = None


def without_statistics(model):
    model[1].bn2 = nn.BatchNorm2d(4, affine=False, track_running_stats=False).double()


def drop_shortcut(model):
    model[2].downsample = nn.Conv2d(4, 6, 1).double()
    nn.init.constant_(model[2].downsample.weight, 0.1)
    nn.init.zeros_(model[2].downsample.bias)


def append(model):
    model[0].append(nn.Tanh())


def insert(model):
    model[0].insert(2, nn.Softplus())


def prune(model):
    nn.utils.prune.l1_unstructured(model[1].bn2, "weight", 0.5)


def parametrize(model):
    nn.utils.parametrize.register_parametrization(model[1].bn2, "weight", nn.Softplus())


CHANGES = [
    put_hook, put_hook_on_relu, replace_relu, replace_norm, freeze, freeze_by_class, stop_tracking, average,
    without_statistics, drop_shortcut, append, insert, prune, parametrize,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_later_change_counts(change):
    model, plain = network(), network(fused=False)
    with torch.random.fork_rng():
        before = computed(plain, x64())
        for net in (model, plain):
            change(net.train())
        if change in (freeze, stop_tracking):  # modes, which computed() would set
            results = []
            for net in (model, plain):
                y = net(x64())
                y.square().sum().backward()
                results.append({"y": y, **{n: p.grad for n, p in net.named_parameters()}, **net.state_dict()})
            assert_same(*results)
            assert error(plain(x64()), before["output"]) > 0.01 or change is stop_tracking
        else:
            after = computed(plain, x64())
            assert_same(computed(model, x64()), after)
            same = error(after["output"], before["output"]) < 1e-9
            assert same == (change is average), "the change must be one that shows"


def test_a_setting_of_a_block_may_change():
    class Scaled(BasicBlock):
        scale = 1.0

        def __init__(self):
            super().__init__(4, 4)
            self.double_it = False

        def forward(self, x):
            y = F.relu(self.bn1(self.conv1(x)))
            return 2 * y if self.double_it else y

    block = stir(Scaled())
    assert fuse(block)["bn1"] == "fused: norm + ReLU"
    x = x64(2, 4, 5, 5)
    y = block(x)
    block.double_it = True
    assert error(block(x), 2 * y) <= 1e-12


def test_slices_of_a_sequential():
    features = torchvision.models.vgg.make_layers([4, "M", 6], batch_norm=True).double()
    fused = copy.deepcopy(features)
    fuse(fused)
    x = x64()
    for part in (slice(0, 2), slice(0, 3), slice(1, 6), slice(None)):
        assert error(fused[part](x64(2, 4, 6, 6) if part.start == 1 else x),
                     features[part](x64(2, 4, 6, 6) if part.start == 1 else x)) <= 1e-12  # fmt: skip
    for a, b in zip(fused, features, strict=True):
        assert type(a) is type(b)


def test_a_stochastic_depth_that_comes_later():
    torch.manual_seed(0)
    model = stir(timm.models.resnet.BasicBlock(4, 4))
    plain = copy.deepcopy(model)
    assert fuse(model)["bn2"] == "fused: norm + add + ReLU"
    for net in (model, plain):
        net.drop_path = timm.layers.DropPath(0.5)
    x = x64(4, 4, 6, 6)
    assert_same(computed(model, x), computed(plain, x))
    assert fuse(model)["bn2"] == "left: DropPath follows, not a ReLU"
    assert_same(computed(model, x), computed(plain, x))
