"""torch-pruning itself, whose rules tests/ecosystem/test_pruning.py follows without it."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import nn

import calibnorm as cn
from ecosystem.nets import Net, images, loss

tp = pytest.importorskip("torch_pruning", reason="make ecosystem installs it")

pytestmark = [pytest.mark.nightly, pytest.mark.filterwarnings("ignore:Unwrapped parameters detected")]


@pytest.mark.parametrize("method", ["iebn", "rbn", "in", "frn", "brn"])
def test_a_cut_channel_takes_its_gates_along(method):
    torch.manual_seed(0)
    model, x = cn.convert(Net(nn.BatchNorm2d), method), images()
    model.train()(x)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    model.eval()
    zeroed = copy.deepcopy(model)
    with torch.no_grad():
        zeroed.conv3.weight[:, [1, 5]] = 0
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=x)
    group = graph.get_pruning_group(model.conv2, tp.prune_conv_out_channels, idxs=[1, 5])
    assert graph.check_pruning_group(group)
    group.prune()
    assert all(p.shape == (6,) for p in model.bn2.parameters() if p.ndim == 1)
    torch.testing.assert_close(model(x), zeroed(x))
    loss(model.train()(x)).backward()
    assert all(p.grad is not None for p in model.bn2.parameters())


@pytest.mark.parametrize("norm", ["iebn", "rbn"])
def test_a_resnet_loses_half_of_its_channels_and_trains(norm):
    torch.manual_seed(0)
    model, x = cn.convert(torchvision.models.resnet18(num_classes=5), norm), torch.randn(2, 3, 64, 64)
    before = sum(p.numel() for p in model.parameters())
    importance = tp.importance.MagnitudeImportance(p=2)
    pruner = tp.pruner.BasePruner(model, x, importance, pruning_ratio=0.5, ignored_layers=[model.fc])
    pruner.step()
    assert sum(p.numel() for p in model.parameters()) < 0.3 * before
    assert {row.channels for row in cn.summary(model)} == {32, 64, 128, 256}
    loss(model(x)).backward()
    assert all(p.grad is not None for p in model.parameters())
    again = cn.convert(cn.revert(copy.deepcopy(model), lossy=True), cn.plan(model))
    again.load_state_dict(model.state_dict())


@pytest.mark.parametrize("method", ["an", "sn", "bcn", "ilm"])
def test_what_mixes_channels_is_refused_with_what_works(method):
    model, x = cn.convert(Net(nn.BatchNorm2d), method), images()
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=x)
    graph.get_pruning_group(model.conv2, tp.prune_conv_out_channels, idxs=[1, 5]).prune()
    with pytest.raises(ValueError, match=r"6 channels now, .* made with 8\. .*cn\.revert\(model, lossy=True\)"):
        model(x)
