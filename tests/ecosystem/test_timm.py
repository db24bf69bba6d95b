"""timm's networks and layers: by ``norm_layer=`` where a network takes any class, by ``cn.convert`` everywhere."""

from __future__ import annotations

import copy

import pytest
import timm
import timm.layers
import torch
from timm.layers import BatchNormAct2d, SplitBatchNorm2d, convert_splitbn_model
from torch import nn

import calibnorm as cn
from ecosystem.nets import (
    LAYERS,
    NAMES,
    assert_same,
    batchnorm_after,
    child_statistics,
    gates,
    images,
    layers,
    network,
    oracle,
    stir,
    stirred,
)


def count_batchnorms(model):
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model_name", ["resnet18", "resnet26d"])
def test_create_model_with_our_class(name, model_name):
    model = timm.create_model(model_name, norm_layer=cn.norm_layer(name), num_classes=4)
    found = list(layers(model))
    assert len(found) == count_batchnorms(model) == count_batchnorms(timm.create_model(model_name))
    # timm's own initialization starts the last gamma of every block at 0.
    last = [m.bn2 if model_name == "resnet18" else m.bn3 for m in model.modules() if hasattr(m, "zero_init_last")]
    assert last
    assert all(torch.equal(layer.bn.weight, torch.zeros_like(layer.bn.weight)) for layer in last)
    others = [layer for _, layer in found if not any(layer is x for x in last)]
    assert all(torch.equal(layer.bn.weight, torch.ones_like(layer.bn.weight)) for layer in others)
    stir(model)
    assert_every_layer_computes_its_formula(model.eval(), images(n=2, size=32))
    model.train()(images(n=2, size=64)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def assert_every_layer_computes_its_formula(model, x):
    seen = []

    def compare(layer, args, y):
        expected = oracle(layer, args[0], batch=False)
        if isinstance(layer.act, nn.Module):
            expected = copy.deepcopy(layer.act)(expected)
        seen.append((y.clone(), expected))  # a ReLU that follows may work in place

    for _, layer in layers(model):
        layer.register_forward_hook(compare)
    with torch.no_grad():
        model(x)
    assert len(seen) == len(list(layers(model)))
    for y, expected in seen:
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model_name", ["regnetx_002", "densenet121"])
def test_create_model_that_wants_a_norm_with_an_activation_refuses_our_class(name, model_name):
    # timm looks up a norm-plus-activation class for the norm's name in a table of its own. It raises; convert works.
    with pytest.raises(AssertionError, match="No equivalent norm_act layer"):
        timm.create_model(model_name, norm_layer=cn.norm_layer(name))


@pytest.mark.parametrize(
    "model_name", ["efficientnet_b0", "regnetx_002", "densenet121", "mobilenetv3_small_050", "resnet18"]
)
def test_convert_keeps_activations_and_function(model_name):
    torch.manual_seed(0)
    model = timm.create_model(model_name, num_classes=4).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    x = images(n=2, size=32)
    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    acts = {n: type(m.act) for n, m in norms.items() if isinstance(m, BatchNormAct2d)}
    assert bool(acts) == (model_name != "resnet18")
    with torch.no_grad():
        expected = model(x)
    for name in NAMES:
        converted = cn.convert(copy.deepcopy(model), name, preserve=True)
        found = dict(layers(converted))
        assert found.keys() == norms.keys()
        assert all(type(layer.bn) is nn.BatchNorm2d for layer in found.values())
        assert {n: type(layer.act) for n, layer in found.items() if isinstance(layer.act, nn.Module)} == acts
        with torch.no_grad():
            torch.testing.assert_close(converted(x), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
        assert_every_layer_computes_its_formula(stir(converted), x)


@pytest.mark.parametrize("norm", LAYERS)
def test_batchnormact2d_keeps_act_and_drop(norm):
    source = BatchNormAct2d(6, act_layer=nn.SiLU, drop_layer=nn.Dropout)
    source.drop.p = 0.5
    act, drop = source.act, source.drop
    layer = stir(cn.convert(nn.Sequential(source), norm.__name__[:-2].lower())).train()
    x = images(channels=6)
    inner = oracle(layer[0], x, batch=True)
    assert layer[0].act is act
    assert layer[0].drop is drop
    torch.manual_seed(5)
    y = layer(x)
    torch.manual_seed(5)
    torch.testing.assert_close(y, nn.functional.silu(nn.functional.dropout(inner, 0.5)))
    torch.testing.assert_close(layer.eval()(x), nn.functional.silu(oracle(layer[0], x, batch=False)))
    back = cn.revert(layer, lossy=True)[0]
    assert isinstance(back, BatchNormAct2d)
    assert back.act is act
    assert back.drop is drop


TOOLS = {
    "sync": timm.layers.convert_sync_batchnorm,
    "frozen": timm.layers.freeze_batch_norm_2d,
    "split": lambda model: convert_splitbn_model(model, num_splits=2),
}


def with_activation():
    source = BatchNormAct2d(6, act_layer=nn.SiLU)
    nn.init.uniform_(source.weight, 0.5, 1.5)
    nn.init.uniform_(source.bias, -0.5, 0.5)
    nn.init.uniform_(source.running_mean, -0.5, 0.5)
    nn.init.uniform_(source.running_var, 0.5, 1.5)
    return nn.Sequential(source).eval()


@pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS)
@pytest.mark.parametrize("name", NAMES)
def test_timms_tools_before_and_after_convert_keep_one_activation(name, tool):
    model, x = with_activation(), images(channels=6)
    expected = model(x)
    after = tool(cn.convert(copy.deepcopy(model), name, preserve=True)).eval()
    before = cn.convert(tool(copy.deepcopy(model)).eval(), name, preserve=True)
    for converted in (after, before):
        ((_, layer),) = layers(converted)
        assert type(layer.act) is nn.SiLU
        assert not hasattr(layer.bn, "act")
        torch.testing.assert_close(converted(x), expected)
        assert_every_layer_computes_its_formula(stir(converted), x)
    assert type(before[0].bn) is type(after[0].bn)


@pytest.mark.parametrize("norm", LAYERS)
def test_split_batchnorm_gives_every_split_the_statistics_of_its_own_batchnorm(norm):
    layer, x = stirred(norm).train(), images(n=6, channels=6)
    before, twin = gates(layer), copy.deepcopy(layer)
    split = convert_splitbn_model(layer, num_splits=3)
    assert type(split) is norm
    assert type(split.bn) is SplitBatchNorm2d
    assert_same(gates(split), before)
    parts = [twin, *(copy.deepcopy(twin) for _ in range(2))]
    shares = x.split(2)
    expected = torch.cat([oracle(part, share, batch=True) for part, share in zip(parts, shares, strict=True)])
    torch.testing.assert_close(split(x), expected)
    for bn, share in zip([split.bn, *split.bn.aux_bn], shares, strict=True):
        got = {key: getattr(bn, key) for key in child_statistics(split)}
        assert_same(got, batchnorm_after(twin, share), rtol=1e-5, atol=1e-6)
    # In eval the first part serves, as in timm.
    torch.testing.assert_close(split.eval()(x), oracle(split, x, batch=False))
    with pytest.raises(ValueError, match="batch of 4 cannot be split evenly among the 3 parts"):
        split.train()(x[:4])


@pytest.mark.parametrize("norm", LAYERS)
def test_split_batchnorm_of_a_network_trains(norm):
    model = convert_splitbn_model(network(norm), num_splits=2).train()
    model(images()).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    with torch.no_grad():
        model.bn1.bn.aux_bn[0].weight.mul_(3.0)
    x = images()
    fed = model.conv1(x)
    expected_first = oracle(model.bn1, fed[:2], batch=True)
    torch.testing.assert_close(model.bn1(fed)[:2], expected_first)
    assert not torch.allclose(model.bn1(fed)[2:], oracle(model.bn1, fed[2:], batch=True))  # its own gamma


@pytest.mark.parametrize("name", NAMES)
def test_features_only(name):
    plain = timm.create_model("resnet18", features_only=True, out_indices=(1, 3)).eval()
    x = images(n=2, size=32)
    converted = cn.convert(copy.deepcopy(plain), name, preserve=True)
    for got, expected in zip(converted(x), plain(x), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    made = timm.create_model("resnet18", features_only=True, norm_layer=cn.norm_layer(name), out_indices=(1, 3))
    assert [f.shape[1] for f in made.eval()(x)] == [64, 256]
    assert len(list(layers(made))) == count_batchnorms(made)
    assert_every_layer_computes_its_formula(stir(made), x)


@pytest.mark.parametrize("name", NAMES)
def test_a_plain_timm_checkpoint_loads(name):
    plain = timm.create_model("resnet18", num_classes=4).train()
    plain(images(n=4, size=32))
    x = images(n=2, size=32, seed=3)
    model = cn.convert(timm.create_model("resnet18", num_classes=4), name, preserve=True)
    model.load_state_dict(plain.state_dict(), strict=True)
    torch.testing.assert_close(model.eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["bn", *NAMES])
def test_a_cache_of_attention_biases_hinders_a_copy_of_the_plain_network_alike(name):
    """timm's LeViT, EfficientFormer and TinyViT keep what an eval forward with gradients indexed."""
    model = cn.convert(timm.create_model("levit_128s", features_only=True), name).eval()
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        model(x)
    copy.deepcopy(model)
    model.train().eval()(x)
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    copy.deepcopy(model.train())
