"""Tools that fold BatchNorm into a convolution: a gate cannot be folded, so ours are left alone or refused aloud."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn
from torch.ao.quantization import fuse_modules
from torch.fx.experimental.optimization import fuse
from torch.nn.utils.fusion import fuse_conv_bn_eval

import calibnorm as cn
from ecosystem.nets import LAYERS, gates, images, layers, network

pytestmark = pytest.mark.parametrize("norm", LAYERS)


def test_torch_fuse_conv_bn_eval_refuses_the_layer(norm):
    model = network(norm).eval()
    with pytest.raises(AttributeError, match=rf"'{norm.__name__}'.*'running_mean'.*child `bn`.*cn.revert\(model\)"):
        fuse_conv_bn_eval(model.conv1, model.bn1)
    assert not hasattr(model.bn1, "running_mean")  # tools ask
    assert not hasattr(model.bn1, "running_var")
    with pytest.raises(AttributeError, match=r"no attribute 'running_maen'$"):
        model.bn1.running_maen  # noqa: B018


def test_fx_fuse_leaves_our_layers_and_folds_the_others(norm):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network(norm)
            self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.net(self.bn(self.conv(x)))

    model, x = Mixed().eval(), images()
    with torch.no_grad():
        model.bn.running_mean.add_(1.0)
    fused = fuse(model)
    called = [node.target for node in fused.graph.nodes if node.op == "call_module"]
    assert "bn" not in called  # the tool did its work ...
    assert [name for name in called if ".bn" in name] == ["net.bn1", "net.bn2", "net.bn3"]  # ... and knew its limits
    torch.testing.assert_close(fused(x), model(x))
    assert gates(fused).keys() == gates(model).keys()


def test_torch_ao_fuse_modules_refuses_the_layer(norm):
    model = network(norm).eval()
    with pytest.raises(AssertionError, match=rf"did not find fuser method.*{norm.__name__}"):
        fuse_modules(model, [["conv1", "bn1"]])


@pytest.mark.parametrize("name", ["mobileone_s0", "repvgg_a0", "repvit_m0_9", "levit_128s", "repghostnet_050"])
def test_timms_reparameterization_says_what_to_call_first(norm, name):
    model = timm.create_model(name).eval()
    cn.convert(model, norm.__name__[:-2].lower(), preserve=True)
    with pytest.raises(AttributeError, match=rf"'{norm.__name__}'.*cn.revert\(model\)"):
        timm.utils.reparameterize_model(model)
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = model(x)
        plain = timm.utils.reparameterize_model(cn.revert(model))  # and it does work then
        size = expected.abs().max()  # up to 1e12 in a network that has learned nothing
        torch.testing.assert_close(plain(x) / size, expected / size, rtol=1e-3, atol=1e-4)


def fuse_by_duck(model):
    """YOLO's way: a `conv` with a `bn` beside it, folded by attribute names, no class asked."""
    for i in (1, 2, 3):
        conv, bn = getattr(model, f"conv{i}"), getattr(model, f"bn{i}")
        scale = bn.weight / torch.sqrt(bn.running_var + bn.eps)
        conv.weight = nn.Parameter(conv.weight * scale[:, None, None, None])
        conv.bias = nn.Parameter(bn.bias - bn.running_mean * scale)
        setattr(model, f"bn{i}", nn.Identity())
    return model


def fuse_by_class(module):
    """mmcv's way: inside every module, a convolution followed by a `_BatchNorm`, which becomes an Identity."""
    last = None
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            if last is not None:
                setattr(module, last, fuse_conv_bn_eval(getattr(module, last), child))
                setattr(module, name, nn.Identity())
                last = None
        elif isinstance(child, nn.Conv2d):
            last = name
        else:
            fuse_by_class(child)
    return module


def test_a_duck_typed_fuser_fails_before_it_changes_a_weight(norm):
    model = network(norm).eval()
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad(), pytest.raises(AttributeError, match="running_var"):
        fuse_by_duck(model)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_duck_typed_fuser_here_does_fold_a_plain_batchnorm(norm):
    model, x = network(norm).eval(), images()
    for name, layer in layers(copy.deepcopy(model)):
        setattr(model, name, layer.bn)
    expected = model(x)
    with torch.no_grad():
        fused = fuse_by_duck(model)
    torch.testing.assert_close(fused(x), expected)


def test_a_fuser_that_walks_children_by_class_leaves_the_layers_alone(norm):
    model, x = network(norm).eval(), images()
    fused = fuse_by_class(copy.deepcopy(model))
    torch.testing.assert_close(fused(x), model(x), rtol=0, atol=0)
    plain = network(norm).eval()
    for name, layer in layers(copy.deepcopy(plain)):
        setattr(plain, name, layer.bn)
    assert isinstance(fuse_by_class(plain).bn2, nn.Identity)  # the walker does fold what it knows


def test_a_child_folded_away_is_refused_by_name(norm):
    model = network(norm).eval()
    model.bn2.bn = nn.Identity()
    with pytest.raises(TypeError, match=rf"{norm.__name__}: its child `bn` is a torch\.nn\..*Identity"):
        model(images())
