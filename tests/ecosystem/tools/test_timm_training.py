"""What timm's train script does on a folder of pictures, with its own parts, and one line of ours."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from timm.data import Mixup, create_dataset, create_loader
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import CheckpointSaver, ModelEmaV3

import calibnorm as cn
from lab.training.tiny import make_pictures

pytestmark = pytest.mark.nightly


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # timm's dataset leaves its pictures open
@pytest.mark.parametrize("norm", ["iebn", "rbn"])
def test_a_folder_of_pictures(norm: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    root = make_pictures(tmp_path / "sets") / "folders"
    model = cn.convert(timm.create_model("resnet10t", num_classes=3), norm)  # the one line
    dataset = create_dataset("", root=str(root), split="train", is_training=True, batch_size=6)
    assert len(dataset) == 18
    loader = create_loader(
        dataset, (3, 32, 32), 6, is_training=True, use_prefetcher=False, num_workers=0, auto_augment="rand-m9-mstd0.5"
    )
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.05, weight_decay=0.05)
    scheduler, _ = create_scheduler_v2(optimizer, num_epochs=2, sched="cosine")
    mixup, ema = Mixup(mixup_alpha=0.2, num_classes=3), ModelEmaV3(model, decay=0.5)
    layers = [m for m in model.modules() if isinstance(m, cn.IEBN2d | cn.RBN2d)]
    assert len(layers) > 10
    start = [{name: gate.detach().clone() for name, gate in layer.gates().items()} for layer in layers]
    free = {id(p) for group in optimizer.param_groups if group["weight_decay"] == 0 for p in group["params"]}
    assert all(id(gate) in free for layer in layers for gate in layer.gates().values())
    saver = CheckpointSaver(model, optimizer, model_ema=ema.module, checkpoint_dir=str(tmp_path))
    for epoch in range(2):
        for images, labels in loader:
            images, targets = mixup(images, labels)
            loss = SoftTargetCrossEntropy()(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            ema.update(model)
        scheduler.step(epoch + 1)
        saver.save_checkpoint(epoch, metric=float(loss.detach()))
    moved = [
        any(not torch.equal(g, s[n]) for n, g in layer.gates().items()) for layer, s in zip(layers, start, strict=True)
    ]
    assert all(moved)
    again = cn.convert(timm.create_model("resnet10t", num_classes=3), cn.plan(model))
    timm.models.load_checkpoint(again, str(tmp_path / "last.pth.tar"))
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again.eval()(x), ema.module.eval()(x))  # the average, which timm prefers
