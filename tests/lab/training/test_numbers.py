"""The numbers of a run are those of a plain loop that anybody would write: nothing around it may change them."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn import functional as F

import calibnorm as cn
from calibnorm.lab import data, models
from lab.training.tiny import EPOCHS, STEPS, TINY, assert_same_run, run, state


def seed_of(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def test_train_is_this_loop(tmp_path: Path) -> None:
    run(TINY, tmp_path / "run")

    torch.manual_seed(seed_of("0/weights"))
    network = models.build("resnet11", num_classes=10, norm="iebn", in_channels=1)
    optimizer = torch.optim.SGD(cn.param_groups(network, 1e-4), 0.05, 0.9)
    digits = data.load("digits", Path(), train_images=256)
    train = data.train_feed(digits, batch_size=64, seed=0, device="cpu", augment="crop")
    test = data.test_feed(digits, batch_size=64, device="cpu")
    lines = ["epoch,train_loss,train_accuracy,test_loss,test_accuracy,test_top5,learning_rate"]
    for epoch in range(EPOCHS):
        train.set_epoch(epoch)
        network.train()
        loss_sum, hits, rate = 0.0, 0, 0.0
        for number, (images, labels) in enumerate(train):
            rate = 0.05 * (1 + math.cos(math.pi * ((epoch * STEPS + number) / (EPOCHS * STEPS)))) / 2
            for group in optimizer.param_groups:
                group["lr"] = rate
            scores = network(images)
            loss = F.cross_entropy(scores, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += 64 * loss.item()
            hits += int((scores.argmax(1) == labels).sum())
        network.eval()
        test_loss, top1, top5 = 0.0, 0, 0
        for images, labels in test:
            with torch.no_grad():
                scores = network(images)
            test_loss += len(labels) * F.cross_entropy(scores, labels).item()
            top1 += int((scores.argmax(1) == labels).sum())
            top5 += int((scores.topk(5).indices == labels[:, None]).sum())
        tested = test_loss / 599, 100 * top1 / 599, 100 * top5 / 599
        lines.append(",".join(map(str, (epoch + 1, loss_sum / 256, 100 * hits / 256, *tested, rate))))

    for name, expected in network.state_dict().items():
        assert torch.equal(state(tmp_path / "run")["network"][name], expected), name
    assert (tmp_path / "run" / "metrics.csv").read_text(encoding="utf-8").splitlines() == lines


def test_the_global_generator_decides_nothing_and_two_runs_are_equal(tmp_path: Path) -> None:
    for name in ("one", "two"):
        torch.manual_seed(len(name) + ord(name[0]))
        run(TINY, tmp_path / name)
    assert_same_run(tmp_path / "one", tmp_path / "two")
    run(replace(TINY, seed=1), tmp_path / "other")
    weight = "conv1.weight"
    assert not torch.equal(state(tmp_path / "other")["network"][weight], state(tmp_path / "one")["network"][weight])
