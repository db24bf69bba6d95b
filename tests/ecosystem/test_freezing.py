"""Whatever freezes BatchNorm layers freezes the statistics of ours, and leaves the gates alive."""

from __future__ import annotations

import copy

import pytest
import timm.layers
import timm.utils
import torch
from lightning.pytorch.callbacks import BaseFinetuning
from torch import nn
from torchvision.models.detection._utils import overwrite_eps
from torchvision.ops.misc import FrozenBatchNorm2d

from ecosystem.nets import (
    LAYERS,
    assert_same,
    child_statistics,
    gates,
    images,
    layers,
    network,
    oracle,
    statistics,
    stirred,
)

pytestmark = pytest.mark.parametrize("norm", LAYERS)


def frozen_by_idiom(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def test_the_idiom_stops_statistics_and_keeps_gates_learning(norm):
    model = network(norm).train()
    frozen_by_idiom(model)
    before, x = statistics(model), images()
    y = model(x)
    assert_same(statistics(model), before)
    torch.testing.assert_close(y, copy.deepcopy(model).eval()(x))
    y.square().sum().backward()
    live = [p.grad.abs().sum() for _, layer in layers(model) for p in layer.gates().values()]
    assert all(g > 0 for g in live)
    assert len(live) == 3 * len(layers(model).__next__()[1].gates())


def test_without_the_idiom_statistics_move(norm):
    model = network(norm).train()
    before = statistics(model)
    model(images())
    assert all(not torch.equal(before[name], value) for name, value in statistics(model).items())


def test_train_on_the_network_thaws_the_child(norm):
    model = frozen_by_idiom(network(norm)).train()
    before = statistics(model)
    model(images())
    assert not torch.equal(statistics(model)["bn1.bn.running_mean"], before["bn1.bn.running_mean"])


def test_timm_freeze_and_unfreeze(norm):
    model = network(norm).train()
    before, x = copy.deepcopy(model), images()
    frozen = timm.layers.freeze_batch_norm_2d(model)
    assert all(isinstance(layer.bn, FrozenBatchNorm2d) for _, layer in layers(frozen))
    assert_same(gates(frozen), gates(before))
    y = frozen(x)
    torch.testing.assert_close(y, copy.deepcopy(before).eval()(x))
    y.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for _, layer in layers(frozen) for p in layer.gates().values())
    for (_, layer), (_, old) in zip(layers(frozen), layers(before), strict=True):
        torch.testing.assert_close(layer.bn.running_mean, old.bn.running_mean)
        assert layer.num_features == old.num_features
    thawed = timm.layers.unfreeze_batch_norm_2d(frozen)
    assert all(type(layer.bn) is nn.BatchNorm2d for _, layer in layers(thawed))
    assert_same(gates(thawed), gates(before))
    torch.testing.assert_close(thawed.eval()(x), before.eval()(x))


def test_timm_utils_freeze_reaches_the_gates_and_the_statistics(norm):
    model = network(norm).train()
    before = statistics(model)
    timm.utils.freeze(model, ["bn1", "bn2"])
    model(images()).sum().backward()
    assert all(p.grad is None for p in model.bn1.parameters())
    assert all(p.grad is not None for p in model.bn3.parameters())
    assert torch.equal(model.bn1.bn.running_mean, before["bn1.bn.running_mean"])
    assert not torch.equal(model.bn3.bn.running_mean, before["bn3.bn.running_mean"])


def frozen_child(norm, eps=1e-5):
    layer = stirred(norm)
    child = FrozenBatchNorm2d(6, eps=eps)
    with torch.no_grad():
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(child, name).copy_(getattr(layer.bn, name))
    layer.bn = child
    return layer


def test_a_frozen_child_gives_frozen_statistics_with_live_gates(norm):
    layer, x = frozen_child(norm).train(), images(channels=6).requires_grad_()
    y = layer(x)
    torch.testing.assert_close(y, oracle(layer, x, batch=False))
    y.square().sum().backward()
    assert {name for name, p in layer.named_parameters() if p.grad is not None} == set(layer.gates())
    assert {name for name, _ in layer.named_parameters()} == set(layer.gates())


def test_overwrite_eps_is_read_at_the_next_forward(norm):
    # torchvision sets eps to 0 in detection backbones whose weights were trained that way.
    layer, x = frozen_child(norm), images(channels=6)
    before = layer(x)
    overwrite_eps(layer, 0.0)
    assert layer.bn.eps == 0.0
    after = layer(x)
    torch.testing.assert_close(after, oracle(layer, x, batch=False))
    assert not torch.equal(after, before)
    overwrite_eps(layer, 0.5)
    torch.testing.assert_close(layer(x), oracle(layer, x, batch=False))


def test_lightning_freeze_does_not_drift_and_eval_is_not_batch_dependent(norm):
    model = network(norm).train()
    before, x = statistics(model), images()
    expected_eval = copy.deepcopy(model).eval()(x)
    BaseFinetuning.freeze(model, train_bn=False)
    assert all(not layer.bn.track_running_stats for _, layer in layers(model))
    assert not any(p.requires_grad for p in model.parameters())
    # Two training forwards: torch's BatchNorm then normalizes with the batch, and moves nothing.
    plain = stirred(norm)
    plain.bn.track_running_stats = False
    z = images(channels=6)
    kept = child_statistics(plain)
    torch.testing.assert_close(plain(z), oracle(plain, z, batch=True))
    assert_same(child_statistics(plain), kept)
    model(x)
    model(2 * x)
    assert_same(statistics(model), before)
    model.eval()
    torch.testing.assert_close(model(x), expected_eval)
    torch.testing.assert_close(model(x[:1]), expected_eval[:1])
    BaseFinetuning.make_trainable(model)
    assert all(layer.bn.track_running_stats for _, layer in layers(model))
    assert all(p.requires_grad for p in model.parameters())
    model.train()(x)
    assert not torch.equal(statistics(model)["bn1.bn.running_mean"], before["bn1.bn.running_mean"])


def test_lightning_freeze_with_trainable_norms_keeps_the_child_learning(norm):
    model = network(norm).train()
    BaseFinetuning.freeze(model, train_bn=True)
    assert all(layer.bn.weight.requires_grad and layer.bn.track_running_stats for _, layer in layers(model))
    assert not model.conv1.weight.requires_grad
