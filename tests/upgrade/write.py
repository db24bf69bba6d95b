"""Write what a user of this version has on disk: networks, checkpoints, plans and runs, for later versions to read.

PYTHONPATH=src python tests/upgrade/write.py tests/upgrade/VERSION

Run it in the checkout of a release. Nothing in the folder is ever written again: test_upgrade.py reads it for good.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

import calibnorm as cn

METHODS = ("bn", "iebn", "rbn", "sn", "gn", "brn")
RUN = ["digits-tiny", "--norm", "iebn", "--train-images", "96", "--batch-size", "32", "--image-size", "4"]
RUN += ["--epochs", "2", "--accelerator", "cpu"]


def plain() -> nn.Sequential:
    """Return the network that every method was put into."""
    first, second = nn.Conv2d(3, 16, 3, bias=False), nn.Conv2d(16, 16, 3, bias=False)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)]
    return nn.Sequential(first, nn.BatchNorm2d(16), nn.ReLU(), second, nn.BatchNorm2d(16), *head)


def trained(method: str) -> tuple[nn.Module, dict[str, object]]:
    """Return a network whose tensors have all moved from where they began, and the plan that made it."""
    torch.manual_seed(0)
    plan = cn.plan(plain(), method)
    network = cn.convert(plain(), plan)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        network(torch.randn(8, 3, 9, 9)).square().sum().backward()
        optimizer.step()
    return network.eval(), plan


def main(folder: Path) -> None:
    """Write everything into a new folder."""
    folder.mkdir(parents=True)
    images = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    networks = {method: trained(method) for method in METHODS}
    torch.save({method: network for method, (network, _) in networks.items()}, folder / "networks.pt")
    torch.save({method: network.state_dict() for method, (network, _) in networks.items()}, folder / "states.pt")
    (folder / "plans.json").write_text(json.dumps({method: plan for method, (_, plan) in networks.items()}, indent=1))
    with torch.no_grad():
        scores = {method: network(images) for method, (network, _) in networks.items()}
    torch.save({"images": images, "scores": scores}, folder / "scores.pt")
    finished, stopped = folder / "finished", folder / "stopped"
    subprocess.run([sys.executable, "-m", "calibnorm", "train", *RUN, "--out", str(finished)], check=True)
    shutil.copytree(finished, stopped)
    checkpoints = sorted((stopped / "checkpoints").iterdir())
    for path in [checkpoints[-1], *(stopped / name for name in ("last.pt", "best.pt", "result.json", "timing.csv"))]:
        path.unlink()  # as if it had been killed in the second epoch
    metrics = (stopped / "metrics.csv").read_text().splitlines(keepends=True)
    (stopped / "metrics.csv").write_text("".join(metrics[:2]))
    for path in [finished / "best.pt", *(finished / "checkpoints").iterdir(), *folder.glob("*/.lock")]:
        path.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
