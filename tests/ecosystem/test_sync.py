"""SyncBatchNorm conversions in one process: the child changes its class, the gates and the function stay."""

from __future__ import annotations

import copy

import pytest
import timm.layers
import torch
import torch.distributed as dist
from torch import nn

from ecosystem.nets import (
    LAYERS,
    assert_same,
    batchnorm_after,
    child_statistics,
    gates,
    gradients,
    images,
    layers,
    network,
    oracle,
    statistics,
    stirred,
)

CONVERSIONS = {"torch": nn.SyncBatchNorm.convert_sync_batchnorm, "timm": timm.layers.convert_sync_batchnorm}
pytestmark = [pytest.mark.parametrize("norm", LAYERS), pytest.mark.parametrize("convert_sync", CONVERSIONS.values())]


def test_a_network_keeps_its_gates_its_function_and_its_gradients(norm, convert_sync):
    model = network(norm)
    before, x = copy.deepcopy(model), images()
    synced = convert_sync(model)
    assert [type(layer) for _, layer in layers(synced)] == [norm] * 3
    assert all(isinstance(layer.bn, nn.SyncBatchNorm) for _, layer in layers(synced))
    assert_same(gates(synced), gates(before))
    assert_same(gradients(synced, x), gradients(before, x))
    torch.testing.assert_close(synced(x), before(x), rtol=0, atol=0)
    assert_same(statistics(synced), statistics(before))
    torch.testing.assert_close(synced.eval()(x), before.eval()(x), rtol=0, atol=0)


def test_statistics_are_those_of_batchnorm_on_this_process(norm, convert_sync):
    layer = convert_sync(stirred(norm))
    x = images(channels=6)
    expected_y, expected = oracle(layer, x, batch=True), batchnorm_after(layer, x)
    torch.testing.assert_close(layer(x), expected_y)
    assert_same(child_statistics(layer), expected, rtol=1e-5, atol=1e-6)


def test_an_initialized_group_of_one_process_is_local(norm, convert_sync, tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        layer = convert_sync(stirred(norm))
        x = images(channels=6)
        torch.testing.assert_close(layer(x), oracle(layer, x, batch=True))
    finally:
        dist.destroy_process_group()


def test_a_synchronized_child_takes_what_torchs_takes(norm, convert_sync):
    # SyncBatchNorm accepts any rank from 2 up; the layer that owns one still refuses a wrong channel count.
    layer = convert_sync(stirred(norm))
    with pytest.raises(ValueError, match="7 channels"):
        layer(torch.randn(4, 7, 8, 8))
