"""Albumentations gives arrays of bytes, channels last: they become float tensors before a network, by its own parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import calibnorm as cn
from ecosystem.nets import LAYERS, network

A = pytest.importorskip("albumentations", reason="make ecosystem installs it")

pytestmark = [pytest.mark.nightly, pytest.mark.parametrize("norm", LAYERS)]

ARRAYS = [np.random.default_rng(seed).integers(0, 256, (40, 48, 3), dtype=np.uint8) for seed in range(4)]


def test_normalized_tensors_are_what_a_network_takes(norm):
    from albumentations.pytorch import ToTensorV2

    pipeline = A.Compose([A.RandomCrop(32, 32), A.HorizontalFlip(p=1.0), A.Normalize(), ToTensorV2()], seed=0)
    batch = torch.stack([pipeline(image=array)["image"] for array in ARRAYS])
    assert batch.dtype is torch.float32
    model = network(norm).train()
    model(batch).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.eval()
    last = torch.from_numpy(batch.permute(0, 2, 3, 1).contiguous().numpy()).permute(0, 3, 1, 2)
    torch.testing.assert_close(model(last), model(batch))  # as the arrays lie: channels last


def test_bytes_are_refused_by_name(norm):
    from albumentations.pytorch import ToTensorV2

    image = A.Compose([ToTensorV2()])(image=ARRAYS[0])["image"]
    assert image.dtype is torch.uint8
    with pytest.raises(TypeError, match=r"input has dtype torch\.uint8; convert it to a floating point dtype"):
        norm(3)(image[None])
    with pytest.raises(TypeError, match="Tensor"):
        norm(3)(ARRAYS[0])
    assert issubclass(norm, cn.IEBN2d | cn.RBN2d)
