"""Training the norms in lockstep: each batch goes to one network after the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import calibnorm as cn
from calibnorm.lab.demo.config import Condition, DemoConfig, NormName
from calibnorm.lab.demo.data import Digits
from calibnorm.lab.demo.model import build

# The first steps of a network pay for memory and for kernels that are chosen once; they are not timed.
UNTIMED_STEPS = 3


@dataclass(frozen=True)
class Epoch:
    """One line of metrics.csv.

    Args:
        condition: "clean" or "noise".
        norm: The norm's name.
        seed: What the initial weights and the order of batches come from.
        epoch: Counted from 1.
        train_loss: Mean cross-entropy over the epoch's batches, as they were trained on.
        test_accuracy: Share of the test images, in percent, that the network gets right after the epoch.
        step_ms: Median time of a training step in the epoch, in milliseconds.
    """

    condition: Condition
    norm: NormName
    seed: int
    epoch: int
    train_loss: float
    test_accuracy: float
    step_ms: float


@dataclass
class Run:
    """One network on its way through training."""

    norm: NormName
    network: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    losses: list[float] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)
    steps: int = 0

    @classmethod
    def start(cls, config: DemoConfig, norm: NormName, condition: Condition, seed: int, steps: int) -> Run:
        """Return a run at step 0 of ``steps``."""
        network = build(config, norm, condition, seed)
        groups = cn.param_groups(network, weight_decay=config.weight_decay)
        optimizer = torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9)
        return cls(norm, network, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps))

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Train on one batch; note its loss and its time."""
        self.network.train()
        start = time.perf_counter()
        loss = F.cross_entropy(self.network(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()
        elapsed_ms = 1e3 * (time.perf_counter() - start)
        self.schedule.step()
        self.steps += 1
        self.losses.append(loss.item())
        if self.steps > UNTIMED_STEPS:
            self.step_ms.append(elapsed_ms)

    def end_epoch(self, condition: Condition, seed: int, epoch: int, digits: Digits) -> Epoch:
        """Test the network and return the epoch's figures."""
        result = Epoch(
            condition,
            self.norm,
            seed,
            epoch,
            sum(self.losses) / len(self.losses),
            accuracy(self.network, digits.test_images, digits.test_labels),
            median(self.step_ms) if self.step_ms else float("nan"),
        )
        self.losses.clear()
        self.step_ms.clear()
        return result


def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images, in percent, whose highest score is at their label."""
    network.eval()
    with torch.no_grad():
        right: Tensor = network(images).argmax(1) == labels
    return 100 * right.double().mean().item()


def train_side_by_side(
    config: DemoConfig,
    digits: Digits,
    condition: Condition,
    seed: int,
    on_step: Callable[[], object],
) -> tuple[list[Epoch], dict[NormName, nn.Module]]:
    """Train one network of each norm on the same batches.

    The norms take turns batch by batch, and each batch starts with the next one, so that what else the machine does
    falls on all of them alike and their times a step can be compared.

    Args:
        config: The demo's settings.
        digits: The images.
        condition: With or without the noise attack.
        seed: Gives the initial weights and the order of batches.
        on_step: Called after every step of a network, for a progress bar.

    Returns:
        The figures of every norm and epoch, and the trained networks by norm.
    """
    steps = config.epochs * digits.steps(config.batch_size)
    runs = [Run.start(config, norm, condition, seed, steps) for norm in config.norms]
    history: list[Epoch] = []
    for epoch in range(1, config.epochs + 1):
        for number, (images, labels) in enumerate(digits.batches(config.batch_size, seed, epoch)):
            first = number % len(runs)
            for run in runs[first:] + runs[:first]:
                run.step(images, labels)
                on_step()
        history += [run.end_epoch(condition, seed, epoch, digits) for run in runs]
    return history, {run.norm: run.network for run in runs}
