"""Networks trained by two processes are those trained by one, and keep their gates."""

from __future__ import annotations

import pytest
import torch

import calibnorm as cn
from distributed.test_synchronized import METHODS

each_method = pytest.mark.parametrize("name", METHODS)


@each_method
def test_five_ddp_steps(pair, name):
    pair("five_ddp_steps", name, METHODS[name])


@pytest.mark.parametrize("name", ["bn", "rbn", "an"])
def test_plain_ddp_and_averaged_statistics(pair, name):
    pair("plain_ddp_then_averaged", name, METHODS[name])


def test_average_of_one_process_is_its_own():
    layer = cn.RBN2d(4)
    layer(torch.randn(2, 4, 3, 3))
    before = layer.bn.running_var.clone()
    assert cn.average_statistics(layer) is layer
    assert torch.equal(layer.bn.running_var, before)
    with pytest.raises(TypeError, match="model"):
        cn.average_statistics([layer])


@pytest.mark.parametrize("each_layer", [False, True])
def test_fsdp2(pair, each_layer):
    pair("fsdp2", each_layer)


def test_fsdp2_with_mixed_precision(pair):
    pair("fsdp2_bfloat16")


def test_fsdp1(pair):
    pair("fsdp1")


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing(pair, use_reentrant):
    pair("checkpointing", use_reentrant)


@pytest.mark.parametrize("name", ["iebn", "rbn"])
def test_lightning_with_sync_batchnorm(pair, name, tmp_path):
    pair("lightning_sync_batchnorm", name, METHODS[name], str(tmp_path))
