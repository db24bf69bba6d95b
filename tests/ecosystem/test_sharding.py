"""FSDP in a process group of one: whole layers train as without it, a child wrapped alone is refused by name."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    MixedPrecision,
    MixedPrecisionPolicy,
    fully_shard,
)
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.parallel import DistributedDataParallel

from ecosystem.nets import LAYERS, assert_same, images, loss, network, statistics, stirred

pytestmark = [
    pytest.mark.parametrize("norm", LAYERS),
    # FSDP1's deprecation notices are about torch's releases, not about these layers.
    pytest.mark.filterwarnings("ignore:.*FullyShardedDataParallel.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*FSDP.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*FSDP.*:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def process_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def assert_trains_like(model, plain, named):
    """Two SGD steps give both models the same outputs, parameters and statistics."""
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01) for m in (model, plain)]
    for step in range(2):
        x = images(seed=step)
        outputs = []
        for m, optimizer in zip((model, plain), optimizers, strict=True):
            optimizer.zero_grad()
            outputs.append(m(x))
            loss(outputs[-1]).backward()
            optimizer.step()
        torch.testing.assert_close(outputs[0], outputs[1])
    got = {name: whole(p).detach() for name, p in named(model)}
    assert_same(got, {name: p.detach() for name, p in plain.named_parameters()}, rtol=1e-5, atol=1e-6)


def test_ddp(norm):
    model = network(norm).train()
    plain = copy.deepcopy(model)
    assert_trains_like(DistributedDataParallel(model), plain, lambda m: m.module.named_parameters())
    assert_same(statistics(model), statistics(plain), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("each_layer", [False, True])
def test_fsdp2_of_whole_layers(norm, each_layer):
    model = network(norm).train()
    plain = copy.deepcopy(model)
    if each_layer:
        for layer in (model.bn1, model.bn2, model.bn3):
            fully_shard(layer)
    fully_shard(model)
    assert_trains_like(model, plain, lambda m: m.named_parameters())
    assert_same(statistics(model), statistics(plain), rtol=1e-5, atol=1e-6)


def test_fsdp2_with_mixed_precision_keeps_fp32_statistics(norm):
    model = network(norm).train()
    before = statistics(model)
    fully_shard(model, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.float32))
    y = model(images())
    loss(y).backward()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.bn2.bn.running_var.dtype is torch.float32
    assert all(torch.isfinite(whole(p.grad)).all() for p in model.parameters())
    assert not torch.equal(statistics(model)["bn2.bn.running_var"], before["bn2.bn.running_var"])


def test_fsdp2_of_the_child_alone_is_refused(norm):
    layer = stirred(norm).train()
    before = statistics(layer)
    fully_shard(layer.bn)
    with pytest.raises((TypeError, ValueError), match="wrap the whole layer as one unit"):
        layer(images(channels=6))
    assert_same(statistics(layer), before)


def without_prefix(named):
    return {name.replace("_fsdp_wrapped_module.", ""): value.detach().clone() for name, value in named}


@pytest.mark.parametrize("use_orig_params", [False, True])
def test_fsdp1_of_whole_layers(norm, use_orig_params):
    model = network(norm).train()
    plain = copy.deepcopy(model)
    wrapped = FullyShardedDataParallel(
        model,
        auto_wrap_policy=ModuleWrapPolicy({norm}),
        use_orig_params=use_orig_params,
        device_id=torch.device("cpu"),
    )
    assert isinstance(wrapped.module.bn1, FullyShardedDataParallel)
    assert type(wrapped.module.bn1.module.bn) is nn.BatchNorm2d

    def named(m):
        with FullyShardedDataParallel.summon_full_params(m):
            return list(without_prefix(m.named_parameters()).items())

    assert_trains_like(wrapped, plain, named)
    assert_same(without_prefix(wrapped.named_buffers()), statistics(plain), rtol=1e-5, atol=1e-6)


def test_fsdp1_auto_wrap_with_mixed_precision_is_refused_by_name(norm):
    # With mixed precision FSDP1 wraps every `_BatchNorm` by itself, to keep it in float32; our layer would then read
    # the shards of a child that it never calls.
    model = network(norm).train()
    before = statistics(model)
    with pytest.warns(UserWarning, match="Both mixed precision and an auto_wrap_policy were specified"):
        wrapped = FullyShardedDataParallel(
            model,
            auto_wrap_policy=ModuleWrapPolicy({nn.Linear}),
            mixed_precision=MixedPrecision(param_dtype=torch.bfloat16),
            device_id=torch.device("cpu"),
        )
    with pytest.raises(
        TypeError, match=rf"{norm.__name__}: FSDP took its child `bn` alone.*wrap the whole layer as one"
    ):
        wrapped(images())
    assert_same(without_prefix(wrapped.named_buffers()), before)


def test_the_remedy_that_the_message_names(norm):
    model = network(norm).train()
    before = statistics(model)
    wrapped = FullyShardedDataParallel(
        model,
        auto_wrap_policy=ModuleWrapPolicy({norm}),
        mixed_precision=MixedPrecision(param_dtype=torch.bfloat16, _module_classes_to_ignore=()),
        device_id=torch.device("cpu"),
    )
    y = wrapped(images())
    loss(y.float()).backward()
    assert torch.isfinite(y).all()
    assert y.dtype is torch.bfloat16
    after = without_prefix(wrapped.named_buffers())
    assert all(
        not torch.equal(after[name], value) and after[name].dtype is value.dtype for name, value in before.items()
    )
