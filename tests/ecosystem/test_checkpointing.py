"""Activation checkpointing runs a forward twice: gradients stay, statistics move as BatchNorm's do."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from ecosystem.nets import (
    LAYERS,
    assert_same,
    batchnorm_after,
    child_statistics,
    gates,
    images,
    loss,
    stirred,
)

pytestmark = pytest.mark.parametrize("norm", LAYERS)


def block(norm):
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), stirred(norm), nn.ReLU(), nn.Conv2d(6, 6, 1))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradients_are_equal_and_statistics_move_as_batchnorms(norm, use_reentrant):
    plain, x = block(norm).train(), images().requires_grad_()
    checkpointed, z = copy.deepcopy(plain), x.detach().clone().requires_grad_()
    with torch.no_grad():
        fed = plain[0](x)
    start = copy.deepcopy(plain[1])
    loss(plain(x)).backward()
    loss(checkpoint(checkpointed, z, use_reentrant=use_reentrant)).backward()
    torch.testing.assert_close(z.grad, x.grad, rtol=0, atol=0)
    for (name, p), q in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=0, atol=0, msg=name)
    assert_same(gates(checkpointed), gates(plain))
    # torch's BatchNorm counts the recomputed forward again; so do we (documented), to the same numbers.
    bn = nn.Sequential(copy.deepcopy(plain[0]), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 1))
    loss(checkpoint(bn, images().requires_grad_(), use_reentrant=use_reentrant)).backward()
    assert bn[1].num_batches_tracked == 2
    assert_same(child_statistics(checkpointed[1]), batchnorm_after(start, fed, fed), rtol=1e-5, atol=1e-6)
    assert_same(child_statistics(plain[1]), batchnorm_after(start, fed), rtol=1e-5, atol=1e-6)


def test_a_layer_at_the_end_of_a_segment(norm):
    # Without reentry the recomputation stops at the last saved tensor. Ours saves before it moves the statistics, so
    # a layer that ends a segment counts its batch once, where torch's BatchNorm counts it twice.
    layer = stirred(norm).train()
    start, x = copy.deepcopy(layer), images(channels=6).requires_grad_()
    loss(checkpoint(lambda t: layer(t * 1.0), x, use_reentrant=False)).backward()
    expected = copy.deepcopy(start)
    z = x.detach().clone().requires_grad_()
    loss(expected(z)).backward()
    torch.testing.assert_close(x.grad, z.grad)
    assert layer.bn.num_batches_tracked == 1
    assert_same(child_statistics(layer), batchnorm_after(start, x.detach()), rtol=1e-5, atol=1e-6)


def test_checkpoint_sequential_and_eval(norm):
    model, x = block(norm).eval(), images().requires_grad_()
    before = child_statistics(model[1])
    y = checkpoint_sequential(model, 2, x, use_reentrant=False)
    torch.testing.assert_close(y, model(x), rtol=0, atol=0)
    loss(y).backward()
    assert x.grad.abs().sum() > 0
    assert_same(child_statistics(model[1]), before)


def test_under_autocast(norm):
    # The recomputation must see the same dtypes as the first forward, else torch.utils.checkpoint raises.
    model, x = block(norm).train(), images().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = checkpoint(model, x, use_reentrant=False)
        loss(F.relu(y).float()).backward()
    assert y.dtype is torch.bfloat16
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
