"""Training as both papers do it: rates that fall in steps, weight decay on the gates too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from calibnorm.lab import data, models
from calibnorm.nn import CalibratedNorm
from lab.training import tiny
from lab.training.test_numbers import seed_of
from lab.training.tiny import TINY, run, state

PAPERS = replace(
    TINY,
    norm="rbn",
    epochs=3,
    schedule="step",
    milestones=(1, 2),
    gamma=0.2,
    weight_decay=0.01,
    decay_gates=True,
    nesterov=True,
    clip_norm=0.5,
    label_smoothing=0.1,
)
RATES = (0.05, 0.05 * 0.2, 0.05 * 0.2**2)


def test_train_is_this_loop_too(tmp_path: Path) -> None:
    run(PAPERS, tmp_path / "run")

    torch.manual_seed(seed_of("0/weights"))
    network = models.build("resnet11", num_classes=10, norm="rbn", in_channels=1)
    optimizer = torch.optim.SGD(network.parameters(), 0.05, 0.9, weight_decay=0.01, nesterov=True)
    train = data.train_feed(
        data.load("digits", Path(), train_images=256), batch_size=64, seed=0, device="cpu", augment="crop"
    )
    losses, clipped = [], 0
    for epoch, rate in enumerate(RATES):
        optimizer.param_groups[0]["lr"] = rate
        train.set_epoch(epoch)
        total = 0.0
        for images, labels in train:
            loss = F.cross_entropy(network(images), labels, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            clipped += bool(torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5) > 0.5)
            optimizer.step()
            total += 64 * loss.item()
        losses.append(f"{total / 256}")
    assert clipped

    for name, expected in network.state_dict().items():
        assert torch.equal(state(tmp_path / "run")["network"][name], expected), name
    rows = [line.split(",") for line in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[1:]]
    assert [row[1] for row in rows] == losses
    assert [float(row[-1]) for row in rows] == pytest.approx(RATES)


@pytest.mark.parametrize("decay_gates", [True, False])
def test_gates_decay_where_the_recipe_says_so(decay_gates: bool) -> None:
    recipe = replace(PAPERS, decay_gates=decay_gates)
    learner = tiny.learner(recipe)
    network = learner.bare
    decay = {id(p): group["weight_decay"] for group in learner.optimizer.param_groups for p in group["params"]}
    layers = [layer for layer in network.modules() if isinstance(layer, CalibratedNorm)]
    gates = {id(p) for layer in layers for p in layer.parameters(recurse=False)}
    assert {decay[gate] for gate in gates} == {0.01 if decay_gates else 0.0}
    assert {decay[id(p)] for p in network.parameters() if id(p) not in gates} == {0.01}
