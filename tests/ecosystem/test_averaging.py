"""Averaged weights: statistics re-estimated by ``update_bn`` are those of BatchNorm, and averages reach the gates."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_avg_fn, update_bn

from ecosystem.nets import (
    LAYERS,
    assert_same,
    calibrated,
    child_statistics,
    gates,
    images,
    layers,
    loss,
    network,
    statistics,
    stirred,
)

pytestmark = pytest.mark.parametrize("norm", LAYERS)


def test_update_bn_averages_over_all_batches(norm):
    layer = stirred(norm).train()
    batches = [images(seed=i, channels=6) for i in range(3)]
    with torch.no_grad():
        fed = [calibrated(layer, x) for x in batches]
    twin = nn.BatchNorm2d(6)
    update_bn(fed, twin)
    update_bn(batches, layer)
    expected = {name: getattr(twin, name) for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert_same(child_statistics(layer), expected, rtol=1e-5, atol=1e-6)
    assert layer.bn.num_batches_tracked == 3
    assert layer.momentum == 0.1


def test_update_bn_in_eval_mode_gives_the_same(norm):
    # update_bn switches the model to training and back.
    trained, evaluated = network(norm).train(), network(norm).eval()
    batches = [images(seed=i) for i in range(2)]
    update_bn(batches, trained)
    update_bn(batches, evaluated)
    assert not evaluated.training
    for (_, a), (_, b) in zip(layers(trained), layers(evaluated), strict=True):
        assert_same(child_statistics(a), child_statistics(b))


def test_update_bn_of_a_half_precision_layer(norm):
    layer = stirred(norm).bfloat16()
    update_bn([images(seed=i, channels=6).bfloat16() for i in range(2)], layer)
    assert layer.bn.num_batches_tracked == 2
    assert layer.bn.running_var.dtype is torch.bfloat16
    assert torch.isfinite(layer.bn.running_var).all()


@pytest.mark.parametrize("use_buffers", [True, False])
def test_averaged_model(norm, use_buffers):
    model = network(norm)
    averaged = AveragedModel(model, avg_fn=get_ema_avg_fn(0.5), use_buffers=use_buffers)
    averaged.update_parameters(model)  # the first call copies
    first = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    model.train()(images())
    averaged.update_parameters(model)
    second, got = model.state_dict(), averaged.module.state_dict()
    names = [n for n in got if n.rpartition(".")[2] != "num_batches_tracked"]
    checked = 0
    for name in names:
        is_buffer = name.rpartition(".")[2].startswith("running")
        expected = first[name].lerp(second[name], 0.5) if use_buffers or not is_buffer else got[name]
        torch.testing.assert_close(got[name], expected, msg=name)
        checked += not is_buffer or use_buffers
    assert checked == len(names) - (0 if use_buffers else 6)


def test_a_yolo_trainers_average(norm):
    # Ultralytics' ModelEMA: a deep copy in eval mode, whose every float of the state dict moves in place.
    model = network(norm).train()
    average = copy.deepcopy(model).eval()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss(model(images())).backward()
    optimizer.step()
    for name, value in average.state_dict().items():
        if value.dtype.is_floating_point:
            value.mul_(0.75).add_(0.25 * model.state_dict()[name].detach())
    for name in (*gates(model), *(n for n in statistics(model) if "num" not in n)):
        expected = 0.75 * before[name] + 0.25 * model.state_dict()[name]
        torch.testing.assert_close(average.state_dict()[name], expected, msg=name)
    assert not torch.allclose(average(images()), model.eval()(images()))


def test_timm_model_ema(norm):
    model = network(norm)
    ema = ModelEmaV3(model, decay=0.75)
    assert_same(gates(ema.module), gates(model))
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    ema.update(model)
    now, got = model.state_dict(), ema.module.state_dict()
    for name in gates(model):
        torch.testing.assert_close(got[name], 0.75 * before[name] + 0.25 * now[name], msg=name)
    assert torch.isfinite(ema(images())).all()


def test_swa_recipe_end_to_end(norm):
    # The recipe of torch's documentation: train, average, update_bn, evaluate.
    model = network(norm).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    swa, scheduler = AveragedModel(model), SWALR(optimizer, swa_lr=0.01, anneal_epochs=1)
    batches = [images(seed=i) for i in range(3)]
    for x in batches:
        optimizer.zero_grad()
        loss(model(x)).backward()
        optimizer.step()
        swa.update_parameters(model)
        scheduler.step()
    start = gates(network(norm))
    assert all(not torch.equal(value, start[name]) for name, value in gates(model).items())
    update_bn(batches, swa)
    twin = copy.deepcopy(swa.module).train()
    seen = []
    twin.bn1.register_forward_pre_hook(lambda m, args: seen.append(calibrated(m, args[0])))
    with torch.no_grad():
        for x in batches:
            twin(x)
    mean = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    torch.testing.assert_close(swa.module.bn1.bn.running_mean, mean)
