"""Networks under DDP, FSDP, Lightning and activation checkpointing, in both processes, against one process."""

from __future__ import annotations

import copy
import inspect
import os
import warnings
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import calibnorm as cn
from calibnorm.nn import CalibratedNorm, layer_type
from cases import randomize
from distributed.checks import assert_bit_equal, assert_near, batch, make, mine, summed, sync
from ecosystem.nets import Net
from tolerances import ORACLE

TRAINED = 1e3 * ORACLE
"""After five steps, which carry the differences of each through a network of three normalizations."""


def network(name: str, options: dict[str, Any], dtype: torch.dtype = torch.float64) -> Net:
    torch.manual_seed(0)
    model = Net(lambda channels: randomize(layer_type(name, 2)(channels, **options)))
    return model.to(dtype).train()


def images(step: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return batch(4, 3, 8, 8, seed=10 * step, dtype=dtype)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, cut: slice) -> None:
    """The mean loss over these images; the mean of two ranks' is that of all."""
    targets = batch(4, 5, seed=77, dtype=x.dtype)
    optimizer.zero_grad()
    (model(x[cut]) - targets[cut]).square().mean().backward()
    optimizer.step()


def trained_like_one(
    rank: int, model: nn.Module, one: nn.Module, steps: int, dtype: torch.dtype = torch.float64
) -> None:
    for m, cut in ((one, slice(None)), (model, slice(2 * rank, 2 * rank + 2))):
        optimizer = torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9)
        for step in range(steps):
            train_step(m, optimizer, images(step, dtype), cut)


def moved(model: nn.Module, start: nn.Module) -> None:
    """Every gate has learned: nobody dropped one on the way."""
    before = dict(start.named_parameters())
    for name, layer in model.named_modules():
        if isinstance(layer, CalibratedNorm):
            for gate, value in layer.gates().items():
                assert not torch.equal(value, before[f"{name}.{gate}"]), f"{name}.{gate}"


def five_ddp_steps(rank: int, name: str, options: dict[str, Any]) -> None:
    # DDP refuses a SyncBatchNorm on a CPU, since torch's own could not run there: wrap first, convert then.
    one = network(name, options)
    start, model = copy.deepcopy(one), copy.deepcopy(one)
    wrapped = DistributedDataParallel(model)
    assert sync(model) is model
    assert isinstance(model.bn2.bn, nn.SyncBatchNorm)
    trained_like_one(rank, wrapped, one, 5)
    assert_near(dict(model.state_dict()), dict(one.state_dict()), TRAINED)
    assert_bit_equal(model)
    moved(model, start)


def plain_ddp_then_averaged(rank: int, name: str, options: dict[str, Any]) -> None:
    """Each process normalizes and keeps its own, as BatchNorm does; then the mean of both, by one collective."""
    model = network(name, options)
    alone = copy.deepcopy(model)
    new = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters  # the name since torch 2.15
    own_buffers = {"forward_sync_buffers" if new else "broadcast_buffers": False}
    wrapped = DistributedDataParallel(model, **own_buffers)
    x = images(rank)
    assert torch.equal(wrapped(x), alone(x))
    statistics = {n: b for n, b in model.named_buffers() if n.endswith(("_mean", "_var"))}
    expected = {n: t / 2 for n, t in summed(statistics).items()}
    assert any(not torch.equal(t, expected[n]) for n, t in statistics.items())
    reduced = []
    all_reduce = dist.all_reduce
    with mock.patch.object(dist, "all_reduce", lambda t, **o: reduced.append(t) or all_reduce(t, **o)):
        assert cn.average_statistics(wrapped) is wrapped
    assert len(reduced) == 1
    assert_near(statistics, expected, ORACLE)
    assert_bit_equal(model)


def fsdp2(rank: int, each_layer: bool) -> None:
    one = network("rbn", {})
    model = sync(copy.deepcopy(one))
    if each_layer:
        for layer in (model.bn1, model.bn2, model.bn3):
            fully_shard(layer)
    fully_shard(model)
    trained_like_one(rank, model, one, 5)
    whole = {n: p.full_tensor() for n, p in model.named_parameters()}
    assert_near(whole, {n: p.detach() for n, p in one.named_parameters()}, TRAINED)
    assert_near(dict(model.named_buffers()), dict(one.named_buffers()), TRAINED)
    assert_bit_equal(model)


def fsdp2_bfloat16(rank: int) -> None:
    """Half types between the layers, statistics wide and equal on all ranks."""
    one = network("iebn", {}, torch.float32)
    model = sync(copy.deepcopy(one))
    fully_shard(model, mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32, output_dtype=torch.float32))
    trained_like_one(rank, model, one, 1, torch.float32)
    floats = {n: b for n, b in model.named_buffers() if b.is_floating_point()}
    assert {b.dtype for b in floats.values()} == {torch.float32}
    assert_near(floats, {n: dict(one.named_buffers())[n] for n in floats}, 2e-2)
    whole = {n: p.full_tensor() for n, p in model.named_parameters()}
    assert_near(whole, {n: p.detach() for n, p in one.named_parameters()}, 2e-2)
    assert_bit_equal(model)


def fsdp1(rank: int) -> None:
    one = network("rbn", {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about torch's releases
        model = FullyShardedDataParallel(
            sync(copy.deepcopy(one)),
            auto_wrap_policy=ModuleWrapPolicy({cn.RBN2d}),
            use_orig_params=True,
            device_id=torch.device("cpu"),
        )
        trained_like_one(rank, model, one, 5)
        with FullyShardedDataParallel.summon_full_params(model):
            whole = {n.replace("_fsdp_wrapped_module.", ""): t.detach().clone() for n, t in model.named_parameters()}
    assert_near(whole, {n: p.detach() for n, p in one.named_parameters()}, TRAINED)
    buffers = {n.replace("_fsdp_wrapped_module.", ""): b for n, b in model.named_buffers()}
    assert_near(buffers, dict(one.named_buffers()), TRAINED)


def checkpointing(rank: int, use_reentrant: bool) -> None:
    """The forward that runs twice exchanges twice, on all ranks in one order."""
    torch.manual_seed(0)
    one = nn.Sequential(nn.Conv2d(4, 4, 1), make("rbn", {}), nn.ReLU(), nn.Conv2d(4, 4, 1)).double()
    two = sync(copy.deepcopy(one))
    x = batch(4, 4, 3, 5).requires_grad_()
    one(x).square().sum().backward()
    z = mine(rank, x, 3).requires_grad_()
    checkpoint(two, z, use_reentrant=use_reentrant).square().sum().backward()
    assert_near({"input": z.grad}, {"input": mine(rank, x.grad, 3)}, ORACLE)
    found = summed({n: p.grad for n, p in two.named_parameters()})
    assert_near(found, {n: p.grad for n, p in one.named_parameters()}, ORACLE)
    assert_bit_equal(two)


def lightning_sync_batchnorm(rank: int, name: str, options: dict[str, Any], folder: str) -> None:
    """``sync_batchnorm=True`` on two devices, started as torchrun starts it, is one process on all images."""
    as_torchrun = {"TORCHELASTIC_RUN_ID": "pair", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    as_torchrun |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    # DDP's refusal of a SyncBatchNorm on a CPU is out of the way: Lightning wraps after it has converted.
    on_gpu = mock.patch.object(DistributedDataParallel, "_passing_sync_batchnorm_handle", return_value=None)
    with mock.patch.dict(os.environ, as_torchrun), on_gpu, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning

        class Task(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.net, self.seen = network(name, options), set()

            def training_step(self, x: Tensor, _: int) -> Tensor:
                self.seen |= {type(layer.bn) for layer in (self.net.bn1, self.net.bn2, self.net.bn3)}
                return (self.net(x) - batch(4, 5, seed=77)[2 * rank : 2 * rank + 2]).square().mean()

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)

        task = Task()
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=2,
            strategy="ddp",
            sync_batchnorm=True,
            use_distributed_sampler=False,
            precision="64-true",
            max_epochs=1,
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        mine_of = [images(step)[2 * rank : 2 * rank + 2] for step in range(5)]
        trainer.fit(task, torch.utils.data.DataLoader(mine_of, batch_size=None))
        assert trainer.world_size == 2
    assert task.seen == {nn.SyncBatchNorm}
    one = network(name, options)
    optimizer = torch.optim.SGD(one.parameters(), lr=0.01, momentum=0.9)
    for step in range(5):
        train_step(one, optimizer, images(step), slice(None))
    assert_near(dict(task.net.state_dict()), dict(one.state_dict()), TRAINED)
    assert_bit_equal(task.net)
    moved(task.net, network(name, options))
