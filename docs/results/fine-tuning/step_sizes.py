"""How fast a gate moves the scale of a trained network, in steps of BatchNorm's gamma; docs/fine-tuning.md has it.

python docs/results/fine-tuning/step_sizes.py [DATA_ROOT]      a minute; needs pip install ".[lab,weights]"
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from calibnorm.lab import data, models

OPEN = {"sigmoid(-1) = 0.269, the paper's start": 0.26894, "sigmoid(3) = 0.953": 0.95257}


def squares(root: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for every channel of the network, gamma², E[m²] and E[((m - mean) / sd)²]."""
    network = models.build("efficientnet_lite0", num_classes=1000, weights="imagenet").eval()
    mean, std = models.expected_pixels("efficientnet_lite0") or (0.0, 1.0)
    pictures = data.load("fashion_colours", root).train.images[:200] / 255
    found: list[Tensor] = []

    def note(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        m, sd = inputs[0].mean((2, 3)), (layer.running_var + layer.eps).sqrt()
        k = (m - layer.running_mean) / sd
        found.append(torch.stack([layer.weight.detach().square(), m.square().mean(0), k.square().mean(0)]))

    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_pre_hook(note)
    with torch.no_grad():
        network((avg_pool2d(pictures, 2) - mean) / std)
    gamma, raw, standardized = torch.cat(found, 1)
    return gamma, raw, standardized


def main() -> None:
    """Print the table in Markdown."""
    gamma, raw, standardized = squares(Path(sys.argv[1] if sys.argv[1:] else "data"))
    for start, d in OPEN.items():
        for name, square in (("raw mean", raw), ("standardized mean", standardized)):
            steps = gamma * (1 - d) ** 2 * square
            quantiles = [float(steps.quantile(q)) for q in (0.5, 0.9, 0.99, 1.0)]
            print(f"| {name}, {start} | " + " | ".join(f"{value:.2g}" for value in quantiles) + " |")


if __name__ == "__main__":
    main()
