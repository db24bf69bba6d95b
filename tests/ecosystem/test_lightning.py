"""Lightning's loop around a network with calibrated layers: precision, synchronization, averaging."""

from __future__ import annotations

import copy

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging, WeightAveraging
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from ecosystem.nets import LAYERS, assert_same, gates, images, layers, loss, network, statistics

pytestmark = [
    pytest.mark.parametrize("norm", LAYERS),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*is deprecated.*LeafSpec:FutureWarning"),
]


class Task(lightning.LightningModule):
    def __init__(self, norm):
        super().__init__()
        self.net = network(norm)
        self.dtypes = set()
        for _, layer in layers(self.net):
            layer.register_forward_hook(lambda m, args, y: self.dtypes.add((args[0].dtype, y.dtype)))

    def training_step(self, x, _):
        return loss(self.net(x).float())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def batches(n=2):
    return DataLoader([images(seed=i) for i in range(n)], batch_size=None)


def fit(task, tmp_path, steps=2, **options):
    options = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, **options}
    trainer = lightning.Trainer(
        default_root_dir=tmp_path,
        limit_train_batches=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(task, batches(steps))
    return task


def steps_by_hand(norm, n=2):
    model = network(norm).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for x in batches(n):
        optimizer.zero_grad()
        loss(model(x)).backward()
        optimizer.step()
    return model


def test_fp32_is_the_loop_by_hand(norm, tmp_path):
    task, model = fit(Task(norm), tmp_path, precision="32-true"), steps_by_hand(norm)
    assert_same(task.net.state_dict(), model.state_dict())
    assert not torch.equal(task.net.bn1.weight, network(norm).bn1.weight)


def test_bf16_mixed_normalizes_bf16_with_fp32_statistics(norm, tmp_path):
    task = fit(Task(norm), tmp_path, precision="bf16-mixed")
    assert task.dtypes == {(torch.bfloat16, torch.bfloat16)}
    by_hand = steps_by_hand(norm)
    assert {t.dtype for t in gates(task.net).values()} == {torch.float32}
    floats = {name: value for name, value in statistics(task.net).items() if value.is_floating_point()}
    assert {value.dtype for value in floats.values()} == {torch.float32}
    assert_same(floats, {name: statistics(by_hand)[name] for name in floats}, rtol=5e-2, atol=5e-2)
    start = gates(network(norm))
    assert all(not torch.equal(value, start[name]) for name, value in gates(task.net).items())


def test_sync_batchnorm_on_one_device_is_no_change(norm, tmp_path):
    task = fit(Task(norm), tmp_path, sync_batchnorm=True)
    assert_same(task.net.state_dict(), steps_by_hand(norm).state_dict())


@pytest.fixture
def left_process_group():
    yield
    dist.destroy_process_group()  # Lightning leaves it to the process's end


@pytest.mark.usefixtures("left_process_group")
def test_sync_batchnorm_under_ddp(norm, tmp_path, monkeypatch):
    # DDP refuses any SyncBatchNorm on a CPU, because torch's own could not run there. Ours can: take that check out to
    # see what Lightning does on a GPU.
    with pytest.raises(ValueError, match="SyncBatchNorm layers only work with GPU modules"):
        fit(Task(norm), tmp_path, strategy="ddp", sync_batchnorm=True)
    monkeypatch.setattr(DistributedDataParallel, "_passing_sync_batchnorm_handle", lambda self, module: None)
    seen = []

    class Watched(Task):
        def on_train_batch_end(self, *args):
            seen.extend(type(layer.bn) for _, layer in layers(self.net))

    task = fit(Watched(norm), tmp_path, strategy="ddp", sync_batchnorm=True)
    assert set(seen) == {nn.SyncBatchNorm}
    # After the fit Lightning puts BatchNorms back in their place.
    assert [type(layer) for _, layer in layers(task.net)] == [norm] * 3
    assert not any(isinstance(layer.bn, nn.SyncBatchNorm) for _, layer in layers(task.net))
    assert_same(task.net.state_dict(), steps_by_hand(norm).state_dict(), rtol=1e-5, atol=1e-6)
    x = images(seed=5)
    torch.testing.assert_close(task.net.eval()(x), steps_by_hand(norm).eval()(x), rtol=1e-4, atol=1e-5)


def test_stochastic_weight_averaging_re_estimates_the_statistics(norm, tmp_path):
    # Lightning puts the averaged weights in, resets the statistics and runs one more epoch with momentum None. (Its
    # last optimizer step then moves the weights once more; the network that counts is that of this epoch.)
    averaged = []

    class Watched(Task):
        def on_train_batch_start(self, batch, batch_idx):
            if self.net.bn1.momentum is None and not averaged:
                averaged.append(copy.deepcopy(self.net))

    swa = StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1, annealing_epochs=1)
    task = fit(Watched(norm), tmp_path, max_epochs=3, callbacks=[swa])
    (net,) = averaged
    start = gates(network(norm))
    assert all(not torch.equal(value, start[name]) for name, value in gates(net).items())
    torch.optim.swa_utils.update_bn(list(batches()), net)
    assert_same(statistics(task.net), statistics(net), rtol=1e-5, atol=1e-6)
    assert all(layer.bn.momentum == 0.1 for _, layer in layers(task.net))


def test_weight_averaging_callback(norm, tmp_path):
    task = fit(Task(norm), tmp_path, callbacks=[WeightAveraging()])
    one, two = gates(steps_by_hand(norm, 1)), gates(steps_by_hand(norm, 2))
    # AveragedModel's first update copies the network after step 1, its second averages with that after step 2.
    expected = {name: (one[name] + two[name]) / 2 for name in one}
    assert_same(gates(task.net), expected, rtol=1e-5, atol=1e-6)


def test_moving_average_callback(norm, tmp_path):
    task = fit(Task(norm), tmp_path, callbacks=[EMAWeightAveraging(decay=0.75)])
    one, two = gates(steps_by_hand(norm, 1)), gates(steps_by_hand(norm, 2))
    expected = {name: 0.75 * one[name] + 0.25 * two[name] for name in one}
    assert_same(gates(task.net), expected, rtol=1e-5, atol=1e-6)
