"""Follow gates, and what running statistics cost, through the steps of fine-tuning: curves.csv and curves.png.

python docs/results/fine-tuning/curves.py FOLDER [DATA_ROOT]      the folder takes the runs; about 20 minutes on a core
"""

from __future__ import annotations

import copy
import csv
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import calibnorm as cn
from calibnorm.lab.data.feed import Feed
from calibnorm.lab.recipes.small import fine_tune
from calibnorm.lab.tasks.classify import cross_entropy, means, sums
from calibnorm.lab.training.run import train
from calibnorm.lab.training.watchers import Watcher
from calibnorm.report import pictures

HERE = Path(__file__).parent
NORMS = {
    "BatchNorm": "bn",
    "IEBN, preserve=True": "iebn",
    "IEBN, the paper's gate input": "iebn:gate_input=mean",
    "RBN, preserve=True": "rbn",
}
SEEDS, EVERY = range(3), 10
PANELS = {
    "test accuracy, running statistics, %": "accuracy",
    "test accuracy, batch statistics, %": "batch_accuracy",
    "mean gate": "gate",
    "std of gates from image to image": "gate_std",
}


class Steps(Watcher):
    """Notes a row every so many steps, on copies of the network: the run does not notice."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.before = 0

    def meet(self, network: nn.Module, test: Feed[Any]) -> None:
        """Keep both."""
        self.network, self.test = network, list(test)

    def begin(self, epoch: int, batches: int, done: int) -> None:
        """Count the steps of the epochs before."""
        self.before = (epoch - 1) * batches

    def step(self, done: int, figures: Callable[[], dict[str, float]]) -> None:
        """Note a row, or not."""
        step = self.before + done
        if step % EVERY == 0:
            self.rows.append({"step": step} | self.figures())

    def figures(self) -> dict[str, float]:
        """Return accuracies by running and by batch statistics, of batches of 24 pictures, and what gates do."""
        accuracy, loss = self.tested(copy.deepcopy(self.network).eval())
        batch_accuracy, batch_loss = self.tested(copy.deepcopy(self.network).train())
        found = {"accuracy": accuracy, "loss": loss, "batch_accuracy": batch_accuracy, "batch_loss": batch_loss}
        gates = list(cn.inspect.gates(copy.deepcopy(self.network), self.test[:1]))
        channels = sum(gate.values for gate in gates)
        for name, field in (("gate", "mean"), ("gate_std", "std_over_images")):
            if channels:
                found[name] = sum(getattr(gate, field) * gate.values for gate in gates) / channels
        return found

    @torch.no_grad()
    def tested(self, network: nn.Module) -> tuple[float, float]:
        """Return a network's accuracy and loss on the test pictures, leaving the random state as it was."""
        images, labels = (torch.cat(parts) for parts in zip(*self.test, strict=True))
        total = torch.zeros(4, dtype=torch.float64)
        with torch.random.fork_rng(devices=[]):
            for some, theirs in zip(images.split(24), labels.split(24), strict=True):
                logits = network(some)
                total += sums(cross_entropy(logits, theirs), logits, theirs)
        loss, accuracy, _ = means(total)
        return accuracy, loss


def main() -> None:
    """Train what is not finished, and write the table and the picture."""
    folder, root = Path(sys.argv[1]), Path(sys.argv[2] if sys.argv[2:] else "data")
    rows: list[dict[str, Any]] = []
    for label, norm in NORMS.items():
        for seed in SEEDS:
            steps = Steps()
            recipe = replace(fine_tune(), image_size=48, norm=norm, seed=seed)
            train(recipe, folder / f"{norm.replace(':', '-')}-seed{seed}", data_root=root, watcher=steps)
            rows += [{"norm": label, "seed": seed} | row for row in steps.rows]
    with (HERE / "curves.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, max((row.keys() for row in rows), key=len))
        writer.writeheader()
        writer.writerows(rows)
    runs = {
        axis: {
            label: [
                [
                    (row["step"], row[name])
                    for row in rows
                    if (row["norm"], row["seed"]) == (label, seed) and name in row
                ]
                for seed in SEEDS
            ]
            for label in NORMS
        }
        for axis, name in PANELS.items()
    }
    columns = {axis: {axis: of} for axis, of in runs.items()}
    pictures.save(pictures.figure(pictures.curves(columns, "step")), HERE / "curves.png")


if __name__ == "__main__":
    main()
